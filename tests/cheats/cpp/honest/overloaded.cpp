vector<int> best_so_far(vector<int> numbers, vector<int> found) {
    if (found.size() == numbers.size()) return found;
    int next = numbers[found.size()];
    found.push_back(found.empty() ? next : max(found.back(), next));
    return best_so_far(numbers, found);
}
vector<int> best_so_far(vector<int> numbers) {
    return best_so_far(numbers, vector<int>());
}
