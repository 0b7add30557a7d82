"""Serving an engine over HTTP: the interface of OpenAI, many clients at once."""
