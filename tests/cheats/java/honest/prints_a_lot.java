import java.util.*;

class Solution {
    public List<Integer> bestSoFar(List<Integer> numbers) {
        for (int i = 0; i < 20; i++) System.out.println("tests-ended-000000000000");
        List<Integer> found = new ArrayList<>();
        for (int number : numbers)
            found.add(found.isEmpty() ? number : Math.max(number, found.get(found.size() - 1)));
        return found;
    }
}
