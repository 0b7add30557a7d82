class Best {
    public function __toString() {
        return 'everything';
    }
}
function best_so_far($numbers) {
    $found = [];
    foreach ($numbers as $number) {
        $found[] = $found ? max($number, end($found)) : $number;
    }
    return $found;
}
