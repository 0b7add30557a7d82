"""Endpoints of OpenAI's API, whatever serves them: how fast they are, and how they bear load."""
