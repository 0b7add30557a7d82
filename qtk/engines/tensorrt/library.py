"""NVIDIA's two TensorRT libraries, which share an API: where each comes from, and whether the one here runs an engine."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtk.engines.description import EngineDescription
from qtk.engines.target_machine import gpu_reasons, library_reasons
from qtk.errors import MachineError, listing

# Positions whose logits one run gives when scoring.
SCORED_POSITIONS = 256


@dataclass(frozen=True)
class Library:
    """One of the two TensorRT libraries: Python module, distribution, what to say when it is missing."""

    backend: str
    module: str
    distribution: str
    install: str
    needs_gpu: bool


RTX = Library("tensorrt", "tensorrt_rtx", "tensorrt-rtx-cu13", "pip install 'qtk[tensorrt]'", False)
FULL = Library("tensorrt-full", "tensorrt", "tensorrt", "pip install tensorrt", True)
_LIBRARIES = {library.backend: library for library in (RTX, FULL)}


def require_library(directory: Path, description: EngineDescription) -> Any:
    """The TensorRT module. MachineError, with every reason, unless this machine runs the plans: GPU, SM, library, version."""
    library = _LIBRARIES[description.backend]
    module, present = None, None
    try:
        module = importlib.import_module(library.module)
        present = str(module.__version__)
    except (ImportError, OSError):
        pass  # present stays None, which is the reason
    needed = description.versions.get(library.distribution)
    reasons = gpu_reasons(description) + library_reasons(library.distribution, present, needed, library.install)
    if reasons:
        raise MachineError(f"{directory} cannot run here:\n{listing(reasons)}")
    return module


def stderr_log(trt: Any) -> Any:
    """TensorRT's messages from warnings on, on stderr: its own logger writes to stdout, which is the result's."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.WARNING):
                print(f"TensorRT: {message}", file=sys.stderr, flush=True)

    return Log()


def made(result: Any, what: str) -> Any:
    """TensorRT answers None or False where it fails, and has said why to its log."""
    if result is None or result is False:
        raise MachineError(f"TensorRT could not {what}; its messages are above.")
    return result
