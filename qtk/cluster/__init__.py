"""Work given to other machines."""
