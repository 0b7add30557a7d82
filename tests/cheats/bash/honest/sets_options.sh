shopt -s extglob
best_so_far() {
    local highest='' found=()
    for number in $1; do
        if [[ -z $highest || $number -gt $highest ]]; then highest=$number; fi
        found+=("$highest")
    done
    echo "${found[*]}"
}
