import java.util.*;

class Solution {
    public List<Integer> bestSoFar(List<Integer> numbers, int start) {
        List<Integer> found = new ArrayList<>();
        for (int number : numbers.subList(start, numbers.size()))
            found.add(found.isEmpty() ? number : Math.max(number, found.get(found.size() - 1)));
        return found;
    }
    public List<Integer> bestSoFar(List<Integer> numbers) {
        return bestSoFar(numbers, 0);
    }
}
