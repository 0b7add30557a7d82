"""Comparing and ranking results, and the help of measuring them, load none of the heavy libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "onnxruntime", "matplotlib", "transformers"}
STORED = Path(__file__).parents[1] / "stored" / "four_lists"
BEFORE, AFTER = STORED / "choices-before.json", STORED / "choices-after.json"
SCRIPT = """
import json, sys
from qtk.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
print(json.dumps([code or 0, sorted({name.partition(".")[0] for name in sys.modules})]), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "code", "loaded"),
    [
        (("bench", "compare", BEFORE, AFTER), 0, set()),
        (("bench", "compare", BEFORE, AFTER, "-o", "comparison"), 0, set()),
        (("bench", "compare", BEFORE, AFTER, "--plot", "loss.svg"), 0, set()),
        (("bench", "leaderboard", BEFORE), 2, set()),
        (("bench", "accuracy", "--help"), 0, set()),
        (("bench", "accuracy", "-o", "out"), 2, set()),
    ],
)
def test_no_heavy_library_is_loaded(tmp_path, words, code, loaded):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, words)], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    found, modules = json.loads(done.stderr.splitlines()[-1])
    assert found == code, done.stderr
    assert HEAVY & set(modules) == loaded
