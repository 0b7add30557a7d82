package qtktests;
import java.util.*;

class Solution {
    public List<Integer> bestSoFar(List<Integer> numbers) {
        return new ArrayList<>();
    }
}
