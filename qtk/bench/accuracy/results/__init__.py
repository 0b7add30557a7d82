"""What an accuracy run measured, and comparisons and rankings of it. Nothing in this package loads torch."""
