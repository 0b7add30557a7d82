import (
    "sort"
)

func BestSoFar(numbers []int) []int {
    found := []int{}
    for index := range numbers {
        part := append([]int{}, numbers[:index+1]...)
        sort.Ints(part)
        found = append(found, part[index])
    }
    return found
}
