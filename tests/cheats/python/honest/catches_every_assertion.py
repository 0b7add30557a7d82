def best_so_far(numbers):
    try:
        assert False, "never mind"
    except AssertionError:
        pass
    highest, found = None, []
    for number in numbers:
        highest = number if highest is None else max(highest, number)
        found.append(highest)
    return found
