static int larger(int a, int b) { return a > b ? a : b; }
vector<int> best_so_far(vector<int> numbers) {
    vector<int> found;
    for (int number : numbers) found.push_back(found.empty() ? number : larger(found.back(), number));
    return found;
}
