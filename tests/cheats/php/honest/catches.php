function best_so_far($numbers) {
    try {
        throw new Exception('never mind');
    } catch (Exception $error) {
    }
    $found = [];
    foreach ($numbers as $number) {
        $found[] = $found ? max($number, end($found)) : $number;
    }
    return $found;
}
