import os


def best_so_far(numbers):
    with open("numbers.txt", "w") as stream:
        stream.write(repr(numbers))
    os.unlink("numbers.txt")
    highest, found = None, []
    for number in numbers:
        highest = number if highest is None else max(highest, number)
        found.append(highest)
    return found
