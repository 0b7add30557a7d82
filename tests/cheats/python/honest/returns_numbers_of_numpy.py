import numpy


def best_so_far(numbers):
    return list(numpy.maximum.accumulate(numbers)) if numbers else []
