"""NVIDIA's two TensorRT libraries, which share an API: whether the one on this machine runs an engine."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from qtk.engines.description import EngineDescription
from qtk.engines.target_machine import gpu_reasons, library_reasons
from qtk.errors import MachineError, listing
from qtk.targets.runtimes import engine_parts

# Positions whose logits one run gives when scoring.
SCORED_POSITIONS = 256


def require_library(directory: Path, description: EngineDescription) -> Any:
    """The TensorRT module. MachineError, with every reason, unless this machine runs the plans: GPU, SM, library, version."""
    library = engine_parts(description.backend).to_run[0]
    module, present = None, None
    try:
        module = importlib.import_module(library.module)
        present = str(module.__version__)
    except (ImportError, OSError):
        pass  # present stays None, which is the reason
    needed = description.versions.get(library.name)
    reasons = gpu_reasons(description) + library_reasons(library.name, present, needed, library.install)
    if reasons:
        raise MachineError(f"{directory} cannot run here:\n{listing(reasons)}")
    return module


def stderr_log(trt: Any) -> Any:
    """A log that writes TensorRT's warnings and errors to stderr. Its own logger writes to stdout, where the result goes."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.WARNING):
                print(f"TensorRT: {message}", file=sys.stderr, flush=True)

    return Log()


def succeeded(result: Any, what: str) -> Any:
    """The result of a TensorRT call. MachineError for None and False, by which TensorRT says that the call failed."""
    if result is None or result is False:
        raise MachineError(f"TensorRT could not {what}; its messages are above.")
    return result
