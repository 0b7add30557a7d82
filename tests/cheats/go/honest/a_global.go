var memory []int

func BestSoFar(numbers []int) []int {
    memory = memory[:0]
    found := []int{}
    for index, number := range numbers {
        if index > 0 && found[index-1] > number {
            number = found[index-1]
        }
        found = append(found, number)
    }
    return found
}
