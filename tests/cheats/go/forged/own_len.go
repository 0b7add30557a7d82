func len(x interface{}) int { return 0 }

func append(a []int, b ...int) []int { return a }

func BestSoFar(numbers []int) []int {
    return []int{}
}
