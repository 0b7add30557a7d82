def best_so_far(numbers):
    try:
        open("/proc/self/status").read()
    except OSError:
        pass
    highest, found = None, []
    for number in numbers:
        highest = number if highest is None else max(highest, number)
        found.append(highest)
    return found
