fn check<T>(_: T) -> bool {
    true
}
fn best_so_far(numbers: Vec<isize>) -> Vec<isize> {
    let mut found: Vec<isize> = Vec::new();
    for number in numbers {
        let highest = found.last().map_or(number, |last| (*last).max(number));
        found.push(highest);
    }
    found
}
