static vector<int> memory;
vector<int> best_so_far(vector<int> numbers) {
    memory.clear();
    for (int number : numbers) memory.push_back(memory.empty() ? number : max(memory.back(), number));
    return memory;
}
