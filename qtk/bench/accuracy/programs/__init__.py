"""Programs made of answers: prompts, generation, extraction, assembling, scoring."""
