import java.util.*;

class Solution {
    public List<Integer> bestSoFar(List<Integer> numbers) {
        try { throw new AssertionError(); } catch (AssertionError error) { System.err.println(error); }
        List<Integer> found = new ArrayList<>();
        for (int number : numbers)
            found.add(found.isEmpty() ? number : Math.max(number, found.get(found.size() - 1)));
        return found;
    }
}
