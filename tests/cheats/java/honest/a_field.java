import java.util.*;

class Solution {
    private List<Integer> found = new ArrayList<>();
    public List<Integer> bestSoFar(List<Integer> numbers) {
        found = new ArrayList<>();
        for (int number : numbers) found.add(found.isEmpty() ? number : Math.max(number, found.get(found.size() - 1)));
        return found;
    }
}
