func BestSoFar(numbers []int) []int {
    for i := 1; i < len(numbers); i++ {
        if numbers[i-1] > numbers[i] {
            numbers[i] = numbers[i-1]
        }
    }
    return numbers
}
