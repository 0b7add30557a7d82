"""The machine that a test runs on: its data sets, its GPU, the dtype that it computes in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets that QTK_DATA names (default ../shared/data); skips where it is absent."""
    path = Path(os.environ.get("QTK_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip("no data folder (set QTK_DATA)")
    return path


@pytest.fixture
def pretend_gpu(tmp_path, monkeypatch):
    """pretend_gpu("8.6"): from here on nvidia-smi on PATH lists a GPU of that compute capability."""
    from qtk.machine import gpus

    def make(compute_capability: str) -> None:
        tools = tmp_path / "driver"
        tools.mkdir(exist_ok=True)
        tool = tools / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\necho 'NVIDIA A10, 23028, {compute_capability}, 580.1'\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
        gpus.cache_clear()

    yield make
    gpus.cache_clear()


@pytest.fixture(params=["float32", "bfloat16"])
def compute_dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs twice, as on a processor without and with fast bfloat16 products."""
    monkeypatch.setenv("QTK_COMPUTE_DTYPE", request.param)
    return str(request.param)


@pytest.fixture
def activations_in_memory(monkeypatch):
    """activations_in_memory(count): from here on a machine so small that calibration activations take that many bytes of it."""
    from qtk.quantization import quantize

    def make(count: int) -> None:
        monkeypatch.setattr(quantize, "total_memory", lambda: 16 * count)

    return make
