macro_rules! larger { ($a:expr, $b:expr) => { if $a > $b { $a } else { $b } }; }
fn best_so_far(numbers: Vec<isize>) -> Vec<isize> {
    let mut found: Vec<isize> = Vec::new();
    for number in numbers {
        let last = found.last().copied().unwrap_or(number);
        found.push(larger!(last, number));
    }
    found
}
