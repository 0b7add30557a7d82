def best_so_far(numbers):
    found = [max(numbers[: index + 1]) for index in range(len(numbers))]
    numbers.sort()
    return found
