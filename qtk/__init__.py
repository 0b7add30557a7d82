"""qtk: merge LoRA adapters, quantize to INT4, build engines, and prove accuracy and latency before and after."""

__version__ = "0.1.0"
