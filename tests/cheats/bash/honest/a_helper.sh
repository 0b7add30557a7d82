larger() { if (( $1 > $2 )); then echo "$1"; else echo "$2"; fi; }
best_so_far() {
    local found=() number
    for number in $1; do
        if (( ${#found[@]} )); then number=$(larger "$number" "${found[-1]}"); fi
        found+=("$number")
    done
    echo "${found[*]}"
}
