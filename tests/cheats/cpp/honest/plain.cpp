vector<int> best_so_far(vector<int> numbers) {
    vector<int> found;
    for (size_t i = 0; i < numbers.size(); i++)
        found.push_back(i == 0 ? numbers[0] : max(found[i - 1], numbers[i]));
    return found;
}
