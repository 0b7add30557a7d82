import java.util.*;

class Solution {
    public List<Integer> bestSoFar(List<Integer> numbers) {
        for (int i = 1; i < numbers.size(); i++) numbers.set(i, Math.max(numbers.get(i), numbers.get(i - 1)));
        return numbers;
    }
}
