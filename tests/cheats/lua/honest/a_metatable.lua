local Best = setmetatable({}, { __eq = function() return true end })
local function best_so_far(numbers)
    local found = {}
    for index, number in ipairs(numbers) do
        found[index] = index > 1 and math.max(number, found[index - 1]) or number
    end
    return found
end
