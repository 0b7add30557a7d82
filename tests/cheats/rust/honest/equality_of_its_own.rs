struct Best(isize);
impl PartialEq for Best {
    fn eq(&self, _: &Best) -> bool {
        true
    }
}
fn best_so_far(numbers: Vec<isize>) -> Vec<isize> {
    let mut found: Vec<isize> = Vec::new();
    for number in numbers {
        let highest = found.last().map_or(number, |last| (*last).max(number));
        found.push(highest);
    }
    found
}
