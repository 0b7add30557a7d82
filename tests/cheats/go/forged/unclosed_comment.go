func BestSoFar(numbers []int) []int {
    return []int{}
}
/* the tests are a comment
