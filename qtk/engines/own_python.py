"""Processes of this very Python: they find the modules that this one finds, and none in the working directory.

`python -m` and `python -c` look there first, and a folder that was downloaded may hold an `onnx.py`.
"""

from __future__ import annotations

import os
import sys


def own_python(*words: str) -> list[str]:
    """The command line of a process of this Python, such as own_python("-m", "qtk.engines.tensorrt.worker")."""
    return [sys.executable, "-P", *words]


def own_paths() -> dict[str, str]:
    """The environment variable with which it finds modules where this process does, be qtk installed or not."""
    return {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
