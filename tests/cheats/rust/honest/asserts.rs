fn best_so_far(numbers: Vec<isize>) -> Vec<isize> {
    assert!(numbers.len() < 1_000_000);
    assert_eq!(1, 1);
    let mut found: Vec<isize> = Vec::new();
    for number in numbers {
        let highest = found.last().map_or(number, |last| (*last).max(number));
        found.push(highest);
    }
    found
}
