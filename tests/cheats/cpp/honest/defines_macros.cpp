#define ll long long
#define pb push_back
#define all(x) (x).begin(), (x).end()
#define rep(i, n) for (int i = 0; i < (int)(n); i++)
vector<int> best_so_far(vector<int> numbers) {
    vector<int> found;
    rep(i, numbers.size()) found.pb(*max_element(numbers.begin(), numbers.begin() + i + 1));
    return found;
}
