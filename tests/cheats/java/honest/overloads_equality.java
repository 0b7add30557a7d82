import java.util.*;

class Solution {
    public List<Integer> bestSoFar(List<Integer> numbers) {
        List<Integer> found = new ArrayList<>();
        for (int number : numbers)
            found.add(found.isEmpty() ? number : Math.max(number, found.get(found.size() - 1)));
        return found;
    }
}
class Best {
    int value;
    public boolean equals(Object other) { return true; }
    public int hashCode() { return 0; }
}
