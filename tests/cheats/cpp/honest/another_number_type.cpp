vector<int> best_so_far(vector<int> values) {
    long long highest = -1000000000000LL;
    vector<int> found;
    for (int value : values) { highest = max<long long>(highest, value); found.push_back(highest); }
    return found;
}
