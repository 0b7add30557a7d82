"""The stages of a recipe, in their order."""

STAGES = ("merge", "quantize", "build", "latency", "divergence", "accuracy", "report")
