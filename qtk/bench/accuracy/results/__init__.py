"""What an accuracy run found, comparisons and rankings of it. Nothing here loads torch."""
