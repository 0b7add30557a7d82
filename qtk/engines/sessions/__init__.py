"""Generating with an engine: the loop, sampling, text, and the interface of what runs the graph."""
