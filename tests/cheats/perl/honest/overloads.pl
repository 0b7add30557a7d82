package Best; use overload '==' => sub { 1 };
package main;
sub best_so_far {
    my($numbers) = @_;
    my @found;
    for my $number (@$numbers) {
        push @found, (@found && $found[-1] > $number) ? $found[-1] : $number;
    }
    return [@found];
}
