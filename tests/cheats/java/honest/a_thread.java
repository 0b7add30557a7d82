import java.util.*;

class Solution {
    public List<Integer> bestSoFar(List<Integer> numbers) {
        List<Integer> found = new ArrayList<>();
        Thread thread = new Thread(() -> { for (int number : numbers) found.add(found.isEmpty() ? number : Math.max(number, found.get(found.size() - 1))); });
        thread.start();
        try { thread.join(); } catch (InterruptedException error) { }
        return found;
    }
}
