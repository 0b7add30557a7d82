const false = true

func BestSoFar(numbers []int) []int {
    return []int{}
}
