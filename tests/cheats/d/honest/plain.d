long[] best_so_far(long[] numbers)
{
    long[] found;
    foreach (number; numbers)
        found ~= found.length && found[$ - 1] > number ? found[$ - 1] : number;
    return found;
}
