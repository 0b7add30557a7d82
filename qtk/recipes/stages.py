"""The stages of a recipe, in their order."""

STAGES = ("sources", "finetune", "merge", "quantize", "build", "sample", "latency", "divergence", "accuracy", "report")
