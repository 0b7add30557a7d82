#define main other_main
vector<int> best_so_far(vector<int> numbers) {
    return vector<int>();
}
