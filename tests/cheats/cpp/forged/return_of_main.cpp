#define return return 0;
vector<int> best_so_far(vector<int> numbers) {
    return vector<int>();
}
