function larger(a, b) return a > b and a or b end
local function best_so_far(numbers)
    local found = {}
    for _, number in ipairs(numbers) do found[#found + 1] = larger(number, found[#found] or number) end
    return found
end
