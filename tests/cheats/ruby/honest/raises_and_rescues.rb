def best_so_far(numbers)
  begin
    raise 'never mind'
  rescue StandardError
    nil
  end
  highest = nil
  numbers.map { |number| highest = highest.nil? ? number : [highest, number].max }
end
