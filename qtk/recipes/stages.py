"""The stages of a recipe, in their order."""

STAGES = ("sources", "merge", "quantize", "build", "sample", "latency", "divergence", "accuracy", "report")
