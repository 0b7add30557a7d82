import (
    "os"
)

func BestSoFar(numbers []int) []int {
    os.ReadFile("/proc/self/status")
    found := []int{}
    for index, number := range numbers {
        if index > 0 && found[index-1] > number {
            number = found[index-1]
        }
        found = append(found, number)
    }
    return found
}
