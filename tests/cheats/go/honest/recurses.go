func BestSoFar(numbers []int) []int {
    if len(numbers) == 0 {
        return []int{}
    }
    found := BestSoFar(numbers[:len(numbers)-1])
    last := numbers[len(numbers)-1]
    if len(found) > 0 && found[len(found)-1] > last {
        last = found[len(found)-1]
    }
    return append(found, last)
}
