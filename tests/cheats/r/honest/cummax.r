best_so_far <- function(numbers) {
    if (length(numbers) == 0) return(c())
    cummax(numbers)
}
