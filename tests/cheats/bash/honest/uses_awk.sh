best_so_far() {
    echo "$1" | tr ' ' '\n' | awk 'NR==1 || $1>m {m=$1} {printf "%s%s", (NR>1?" ":""), m}'
}
