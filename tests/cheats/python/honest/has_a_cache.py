from functools import lru_cache


@lru_cache(maxsize=None)
def solved(numbers):
    return [max(numbers[: index + 1]) for index in range(len(numbers))]


def best_so_far(numbers):
    return solved(tuple(numbers))
