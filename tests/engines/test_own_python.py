"""No process of ours takes modules from the working directory, which may be a folder that was downloaded."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import qtk
from qtk.engines.own_python import own_paths, own_python

# Of those that start Python otherwise: the sandbox's workers, in "/" and inside the jail, and one with PYTHONSAFEPATH.
_OTHERS = {"sandbox/pool.py", "sandbox/worker.py", "bounded/programs.py"}


@pytest.mark.parametrize("words", [("-c", "import onnx, torch"), ("-m", "qtk.engines.tensorrt.worker", "nowhere.json")])
def test_modules_in_the_working_directory_are_not_imported(tmp_path: Path, words: tuple[str, ...]) -> None:
    for name in ("onnx", "torch", "numpy", "json", "qtk"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()\n")
    done = subprocess.run(
        own_python(*words), cwd=tmp_path, env={**os.environ, **own_paths()}, capture_output=True, text=True
    )
    assert not (tmp_path / "ran").exists(), done.stderr
    assert "nowhere.json" in done.stderr or done.returncode == 0, done.stderr


def test_nobody_starts_python_otherwise() -> None:
    root = Path(qtk.__file__).parent
    starting = {str(path.relative_to(root)) for path in root.rglob("*.py") if "sys.executable" in path.read_text()}
    assert starting - _OTHERS == {"engines/own_python.py"}
