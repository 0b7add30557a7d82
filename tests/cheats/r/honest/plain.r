best_so_far <- function(numbers) {
    found <- c()
    for (number in numbers) found <- c(found, max(number, found))
    found
}
