import java.util.*;

class Solution {
    public List<Integer> bestSoFar(List<Integer> numbers) {
        LinkedList<Integer> found = new LinkedList<>();
        for (int number : numbers) found.add(found.isEmpty() ? number : Math.max(number, found.getLast()));
        return found;
    }
}
