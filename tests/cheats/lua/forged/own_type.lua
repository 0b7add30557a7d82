local unused = 0; type = function() return 'nil' end
local function best_so_far(numbers)
    return numbers
end
