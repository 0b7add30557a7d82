import std.algorithm : cumulativeFold, max;
import std.array : array;
long[] best_so_far(long[] numbers)
{
    return numbers.cumulativeFold!max.array;
}
unittest
{
    assert(best_so_far([2L, 1L]) == [2L, 2L]);
}
