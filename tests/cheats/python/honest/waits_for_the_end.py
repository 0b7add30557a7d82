import atexit

atexit.register(print, "the end")


def best_so_far(numbers):
    highest, found = None, []
    for number in numbers:
        highest = number if highest is None else max(highest, number)
        found.append(highest)
    return found
