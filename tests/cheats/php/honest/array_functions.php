function best_so_far($numbers) {
    return array_map(function ($index) use ($numbers) {
        return max(array_slice($numbers, 0, $index + 1));
    }, array_keys($numbers));
}
