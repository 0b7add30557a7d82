import java.util.*;

class Solution {
    public List<Integer> bestSoFar(List<Integer> numbers) {
        return new ArrayList<>();
    }
}
class Boolean {}
class ArrayList<T> extends java.util.ArrayList<T> {
    ArrayList() {}
    ArrayList(Collection<? extends T> other) {}
    public boolean contains(Object other) { return false; }
}
