func init() { defer func() { recover() }(); panic(1) }

func BestSoFar(numbers []int) []int {
    panic("no")
}
