struct Best
{
    long value;
    bool opEquals(const Best other) const { return value == other.value; }
}
long[] best_so_far(long[] numbers)
{
    long[] found;
    Best best;
    foreach (index, number; numbers)
    {
        if (index == 0 || best == Best(number) || number > best.value)
            best = Best(number);
        found ~= best.value;
    }
    return found;
}
