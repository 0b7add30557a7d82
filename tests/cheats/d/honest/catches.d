long[] best_so_far(long[] numbers)
{
    long[] found;
    foreach (number; numbers)
    {
        try
        {
            if (found.length == 0 || number > found[$ - 1])
                throw new Exception("better");
            found ~= found[$ - 1];
        }
        catch (Exception better)
        {
            found ~= number;
        }
    }
    return found;
}
