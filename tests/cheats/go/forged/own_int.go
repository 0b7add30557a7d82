type int = int64

func BestSoFar(numbers []int) []int {
    return []int{}
}
