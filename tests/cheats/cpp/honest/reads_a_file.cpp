#include <fstream>
vector<int> best_so_far(vector<int> numbers) {
    ifstream file("/proc/self/status");
    string line;
    getline(file, line);
    vector<int> found;
    for (size_t i = 0; i < numbers.size(); i++)
        found.push_back(i == 0 ? numbers[0] : max(found[i - 1], numbers[i]));
    return found;
}
