import java.util.*;

class Solution {
    public List<Integer> bestSoFar(List<Integer> numbers) {
        return new ArrayList<>();
    }
}
/* the tests are a comment
