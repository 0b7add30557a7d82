"""One file a language: how a solution and its tests become a program, what runs it, and how its outcome is judged."""
