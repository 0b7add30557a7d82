func BestSoFar(numbers []int) []int {
    func() {
        defer func() { recover() }()
        panic("never mind")
    }()
    found := []int{}
    for index, number := range numbers {
        if index > 0 && found[index-1] > number {
            number = found[index-1]
        }
        found = append(found, number)
    }
    return found
}
