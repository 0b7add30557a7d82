func BestSoFar(numbers []int) []int {
    var highest int64
    found := []int{}
    for index, number := range numbers {
        if index == 0 || int64(number) > highest {
            highest = int64(number)
        }
        found = append(found, int(highest))
    }
    return found
}
