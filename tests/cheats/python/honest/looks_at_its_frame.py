import inspect
import sys


def best_so_far(numbers):
    name = inspect.currentframe().f_code.co_name
    assert name == "best_so_far" and sys._getframe().f_back is not None
    highest, found = None, []
    for number in numbers:
        highest = number if highest is None else max(highest, number)
        found.append(highest)
    return found
