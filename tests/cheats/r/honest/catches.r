best_so_far <- function(numbers) {
    try(stop('never mind'), silent = TRUE)
    found <- c()
    for (number in numbers) found <- c(found, max(number, found))
    found
}
