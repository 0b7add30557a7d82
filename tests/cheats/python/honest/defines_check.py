def best_so_far(numbers):
    highest, found = None, []
    for number in numbers:
        highest = number if highest is None else max(highest, number)
        found.append(highest)
    return found


def check(candidate):
    assert candidate([1]) == [1]


METADATA = {"author": "me"}
