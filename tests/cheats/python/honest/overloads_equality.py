class Best:
    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return True

    def __lt__(self, other):
        return self.value < other.value


def best_so_far(numbers):
    highest, found = None, []
    for number in map(Best, numbers):
        highest = number if highest is None or highest < number else highest
        found.append(highest.value)
    return found
