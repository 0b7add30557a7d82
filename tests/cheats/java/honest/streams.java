import java.util.*;

class Solution {
    public List<Integer> bestSoFar(List<Integer> numbers) {
        return java.util.stream.IntStream.range(0, numbers.size())
            .mapToObj(i -> Collections.max(numbers.subList(0, i + 1))).collect(java.util.stream.Collectors.toList());
    }
}
