"""The script that holds qtk's quantizers against their peers: what it measures, keeps, and says of those it cannot run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "compare_quantizers.py"
SMALL = ["--samples", "4", "--seq-len", "64", "--rows", "2", "--held-out-seq-len", "32", "--threads", "1"]


def compare(model: Path, work: Path, only: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(model), "--work", str(work), "--only", only, *SMALL, *words],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.slow
def test_it_measures_keeps_what_it_measured_and_names_what_it_could_not(tiny, tmp_path) -> None:
    report = tmp_path / "report.json"
    words = ["--json", str(report)]
    done = compare(tiny("llama"), tmp_path / "work", "rtn,gptqmodel", *words, QTK_INTEROP_PYTHON="/nowhere/python")
    assert done.returncode == 1, done.stderr
    assert "GPTQModel, GPTQ was not measured: no environment 'interop'" in done.stdout
    figures = json.loads(report.read_text())
    (rtn,) = figures["results"]
    assert rtn["pooled"]["tokens"] == 2 * 2 * 31
    assert rtn["pooled"]["kl"]["mean"] > 0
    assert [text["text"] for text in rtn["texts"]] == ["python-stdlib-heldout", "python-docs-english"]
    assert rtn["peak_bytes"] > 50_000_000  # Python with torch
    assert rtn["seconds"] > rtn["parts"]["quantize"] > 0
    assert f"{rtn['pooled']['kl']['mean']:.4g}" in done.stdout

    again = compare(tiny("llama"), tmp_path / "work", "rtn", *words)
    assert again.returncode == 0, again.stderr
    assert "qtk rtn: measured before" in again.stderr
    assert json.loads(report.read_text())["results"] == [rtn]


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize(
    ("peer", "environment"), [("gptqmodel", "interop"), ("llm-compressor", "llmcompressor"), ("autoround", "autoround")]
)
def test_a_peer_quantizes_the_same_rows_and_is_read_back(
    tiny, tmp_path, peer, environment, symmetric, owners_python
) -> None:
    owners_python(environment)  # skips without it
    report = tmp_path / "report.json"
    words = ["--json", str(report), "--autoround-iters", "2", "--sym" if symmetric else "--asym"]
    done = compare(tiny("llama"), tmp_path / "work", f"rtn,{peer}", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    rtn, theirs = json.loads(report.read_text())["results"]
    # Its codes must have been understood: a wrong zero point or order costs far more than rounding does.
    assert 0 < theirs["pooled"]["kl"]["mean"] < 1.5 * rtn["pooled"]["kl"]["mean"]
    assert theirs["parts"]["quantize"] > 0
