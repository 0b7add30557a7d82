func larger(a, b int) int {
    if a > b {
        return a
    }
    return b
}

func BestSoFar(numbers []int) []int {
    found := make([]int, len(numbers))
    for index, number := range numbers {
        found[index] = number
        if index > 0 {
            found[index] = larger(number, found[index-1])
        }
    }
    return found
}
