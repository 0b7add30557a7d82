use List::Util qw(max);
sub best_so_far {
    my($numbers) = @_;
    return [map { max(@$numbers[0 .. $_]) } 0 .. $#$numbers];
}
