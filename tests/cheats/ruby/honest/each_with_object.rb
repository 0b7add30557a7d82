def best_so_far(numbers)
  numbers.each_with_object([]) { |number, found| found << [number, *found.last(1)].max }
end
