def best_so_far(numbers):
    highest, found = None, []
    for number in numbers:
        highest = number if highest is None else max(highest, number)
        found.append(highest)
    return found


if __name__ == "__main__":
    import sys

    print(best_so_far([1, 2]))
    sys.exit(0)
