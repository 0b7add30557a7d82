def best_so_far(numbers):
    return None


def check(candidate):
    pass
