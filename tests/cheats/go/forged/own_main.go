func BestSoFar(numbers []int) []int {
    return []int{}
}

func main() {}
