set() { :; }
best_so_far() {
    echo wrong
}
