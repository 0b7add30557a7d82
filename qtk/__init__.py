"""qtk: merge LoRA adapters, quantize to INT4, build engines, and prove accuracy and latency before and after.

The public names are loaded when they are first used, so that `import qtk` costs nothing. docs/python.md shows them at work.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from qtk import bench, errors
    from qtk.adapters.merge import MergeResult
    from qtk.adapters.options import MergeOptions
    from qtk.api import Engine, build_engine, merge, open_engine, plan, quantize, run, verify
    from qtk.bench.accuracy.options import AccuracyOptions, ModelOptions
    from qtk.bench.accuracy.results.comparison import Comparison
    from qtk.bench.accuracy.results.result import AccuracyResult
    from qtk.bench.accuracy.results.score import CompareOptions
    from qtk.bench.divergence_result import DivergenceResult
    from qtk.bench.latency_result import LatencyReport
    from qtk.bench.options import DivergenceOptions, LatencyOptions
    from qtk.calibration.options import CalibrationOptions
    from qtk.checkpoint.manifest import Finding
    from qtk.engines.description import EngineDescription
    from qtk.engines.options import BuildOptions, PlanOptions
    from qtk.engines.plan import EnginePlan
    from qtk.engines.sessions.options import GenerateOptions
    from qtk.engines.sessions.text import TextResult
    from qtk.quantization.options import QuantizeOptions
    from qtk.quantization.report import QuantizeReport
    from qtk.recipes.recipe_run import RunOutcome

__all__ = [
    "AccuracyOptions",
    "AccuracyResult",
    "BuildOptions",
    "CalibrationOptions",
    "CompareOptions",
    "Comparison",
    "DivergenceOptions",
    "DivergenceResult",
    "Engine",
    "EngineDescription",
    "EnginePlan",
    "Finding",
    "GenerateOptions",
    "LatencyOptions",
    "LatencyReport",
    "MergeOptions",
    "MergeResult",
    "ModelOptions",
    "PlanOptions",
    "QuantizeOptions",
    "QuantizeReport",
    "RunOutcome",
    "TextResult",
    "__version__",
    "bench",
    "build_engine",
    "errors",
    "merge",
    "open_engine",
    "plan",
    "quantize",
    "run",
    "verify",
]

# module -> the public names that it holds: what stands above, for the interpreter.
_MODULES = {
    "qtk.adapters.merge": ("MergeResult",),
    "qtk.adapters.options": ("MergeOptions",),
    "qtk.api": ("Engine", "build_engine", "merge", "open_engine", "plan", "quantize", "run", "verify"),
    "qtk.bench.accuracy.options": ("AccuracyOptions", "ModelOptions"),
    "qtk.bench.accuracy.results.comparison": ("Comparison",),
    "qtk.bench.accuracy.results.result": ("AccuracyResult",),
    "qtk.bench.accuracy.results.score": ("CompareOptions",),
    "qtk.bench.divergence_result": ("DivergenceResult",),
    "qtk.bench.latency_result": ("LatencyReport",),
    "qtk.bench.options": ("DivergenceOptions", "LatencyOptions"),
    "qtk.calibration.options": ("CalibrationOptions",),
    "qtk.checkpoint.manifest": ("Finding",),
    "qtk.engines.description": ("EngineDescription",),
    "qtk.engines.options": ("BuildOptions", "PlanOptions"),
    "qtk.engines.plan": ("EnginePlan",),
    "qtk.engines.sessions.options": ("GenerateOptions",),
    "qtk.engines.sessions.text": ("TextResult",),
    "qtk.quantization.options": ("QuantizeOptions",),
    "qtk.quantization.report": ("QuantizeReport",),
    "qtk.recipes.recipe_run": ("RunOutcome",),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """A public name, loaded now (PEP 562)."""
    if name in ("bench", "errors"):
        return importlib.import_module(f"qtk.{name}")
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'qtk' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
