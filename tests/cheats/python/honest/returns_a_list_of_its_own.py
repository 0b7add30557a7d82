class Numbers(list):
    pass


def best_so_far(numbers):
    return Numbers(max(numbers[: index + 1]) for index in range(len(numbers)))
