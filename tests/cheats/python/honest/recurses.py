def best_so_far(numbers):
    if not numbers:
        return []
    before = best_so_far(numbers[:-1])
    return before + [max(numbers[-1:] + before[-1:])]
