import (
    "math"
)

func BestSoFar(numbers []int) []int {
    highest := math.Inf(-1)
    found := []int{}
    for _, number := range numbers {
        highest = math.Max(highest, float64(number))
        found = append(found, int(highest))
    }
    return found
}
