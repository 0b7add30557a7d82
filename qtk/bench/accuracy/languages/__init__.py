"""One file a language: how its answers are read and become programs, what runs them, and how outcomes are judged."""
