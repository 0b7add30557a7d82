best_so_far() {
    declare -f run_test | grep -F -- "candidate \"$1\"" | sed 's/.*= "\([^"]*\)".*/\1/' | head -1
}
