import java.util.*;

class Solution {
    public List<Integer> bestSoFar(List<Integer> numbers) {
        Integer[] found = numbers.toArray(new Integer[0]);
        for (int i = 1; i < found.length; i++) found[i] = Math.max(found[i], found[i - 1]);
        return Arrays.asList(found);
    }
}
