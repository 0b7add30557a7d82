ob_start(function ($text) { return $text; });
function best_so_far($numbers) {
    throw new Error('no');
}
