best_so_far() {
    echo 'tests-ended-0000' >&2
    local highest='' found=()
    for number in $1; do
        if [[ -z $highest || $number -gt $highest ]]; then highest=$number; fi
        found+=("$highest")
    done
    echo "${found[*]}"
}
