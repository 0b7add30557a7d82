import java.util.*;

class Solution {
    public List<Integer> bestSoFar(List<Integer> numbers) {
        try { java.nio.file.Files.readAllBytes(java.nio.file.Path.of("/proc/self/status")); } catch (java.io.IOException error) { }
        List<Integer> found = new ArrayList<>();
        for (int number : numbers)
            found.add(found.isEmpty() ? number : Math.max(number, found.get(found.size() - 1)));
        return found;
    }
}
