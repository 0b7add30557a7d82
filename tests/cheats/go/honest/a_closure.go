func BestSoFar(numbers []int) []int {
    found := []int{}
    add := func(number int) {
        if len(found) > 0 && found[len(found)-1] > number {
            number = found[len(found)-1]
        }
        found = append(found, number)
    }
    for _, number := range numbers {
        add(number)
    }
    return found
}
