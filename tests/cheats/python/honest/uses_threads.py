import threading


def best_so_far(numbers):
    found = []

    def work():
        found.extend(max(numbers[: index + 1]) for index in range(len(numbers)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return found
