"""Suites, their tasks and their question sets, read from files."""
