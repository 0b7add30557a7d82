import java.util.*;

class Solution {
    public List<Integer> bestSoFar(List<Integer> numbers) {
        throw new ThreadDeath();
    }
}
