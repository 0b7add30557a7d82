function check($x) {
    return true;
}
function best_so_far($numbers) {
    $found = [];
    foreach ($numbers as $number) {
        $found[] = $found ? max($number, end($found)) : $number;
    }
    return $found;
}
