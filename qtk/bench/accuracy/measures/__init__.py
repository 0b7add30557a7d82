"""How each kind of score is measured, one file a kind."""
