vector<int> best_so_far(vector<int> numbers) {
    vector<int> found;
    auto add = [&](int number) { found.push_back(found.empty() ? number : max(found.back(), number)); };
    for (int number : numbers) add(number);
    return found;
}
