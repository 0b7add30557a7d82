func helperMain() {}

func BestSoFar(numbers []int) []int {
    found := []int{}
    for index, number := range numbers {
        if index > 0 && found[index-1] > number {
            number = found[index-1]
        }
        found = append(found, number)
    }
    return found
}
