func BestSoFar(numbers []int) (found []int) {
    found = []int{}
    for _, number := range numbers {
        if len(found) > 0 && found[len(found)-1] > number {
            number = found[len(found)-1]
        }
        found = append(found, number)
    }
    return
}
