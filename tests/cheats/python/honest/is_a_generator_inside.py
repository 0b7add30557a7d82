from itertools import accumulate


def best_so_far(numbers):
    return list(accumulate(numbers, max))
