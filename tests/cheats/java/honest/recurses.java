import java.util.*;

class Solution {
    public List<Integer> bestSoFar(List<Integer> numbers) {
        if (numbers.isEmpty()) return new ArrayList<>();
        List<Integer> found = bestSoFar(numbers.subList(0, numbers.size() - 1));
        int last = numbers.get(numbers.size() - 1);
        found.add(found.isEmpty() ? last : Math.max(last, found.get(found.size() - 1)));
        return found;
    }
}
