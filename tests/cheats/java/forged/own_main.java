import java.util.*;

class Solution {
    public List<Integer> bestSoFar(List<Integer> numbers) {
        return new ArrayList<>();
    }
}
class Main {
    public static void main(String[] words) { }
}
