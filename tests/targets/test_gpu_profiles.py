"""The shipped GPU profiles, and `qtk gpus`."""

from __future__ import annotations

import json

import pytest

from qtk.engines.build import build_engine
from qtk.engines.options import BuildOptions, PlanOptions
from qtk.engines.plan import plan_engine
from qtk.errors import InputError
from qtk.targets.gpu import gpu_names, gpu_profile, gpu_profiles

NAMES = "a10 a100-40g a100-80g a30 a40 cpu h100 l4 l40s rtx3090 rtx4090 rtx5090 rtx6000-ada"


def test_every_shipped_profile_is_complete_and_says_where_from() -> None:
    for profile in gpu_profiles():
        assert profile.sources
        assert profile.default_backend == profile.backends[0]
        if profile.is_cpu:
            assert profile.default_backend == "onnxruntime"
            continue
        assert all(source.startswith("https://") for source in profile.sources)
        assert any("nvidia.com/en-us/" in source for source in profile.sources), "the product's page"
        assert profile.sm in (80, 86, 89, 90, 120)
        assert profile.memory_bytes
        assert profile.bandwidth_gb_s
        assert profile.fp16_tflops
    assert gpu_names() == NAMES.split()


def test_a10() -> None:
    a10 = gpu_profile("A10")
    assert (a10.sm, a10.bandwidth_gb_s, a10.default_backend) == (86, 600, "tensorrt")
    # The driver of an A10 reports 23028 MiB with error correction on.
    assert abs(a10.memory_bytes - 23028 * 2**20) < 50 * 2**20
    assert "SM90" in gpu_profile("h100").advice
    assert "tensorrt" not in gpu_profile("h100").backends


def test_unknown_gpu_lists_the_closest() -> None:
    with pytest.raises(InputError, match="Did you mean a10") as caught:
        gpu_profile("a10g")
    assert "rtx4090" in str(caught.value)


@pytest.mark.parametrize(
    ("gpu", "backend", "why"),
    [
        ("rtx5090", "tensorrt-llm", "TensorRT-LLM runs INT4 from SM80 to SM90; this GPU is SM120"),
        ("l4", "tensorrt-edgellm", "without SM89 and SM90; this GPU is SM89"),
        ("h100", "tensorrt", "without SM90"),
        ("cpu", "tensorrt", "what does: onnxruntime"),
    ],
)
def test_a_backend_that_is_not_for_a_gpu_says_why(tiny, tmp_path, gpu: str, backend: str, why: str) -> None:
    with pytest.raises(InputError) as caught:
        build_engine(tiny(), tmp_path / "engine", BuildOptions(gpu=gpu, backend=backend))
    assert f"does not build for {gpu}" in str(caught.value)
    assert why in str(caught.value)
    if gpu != "cpu":
        assert why in plan_engine(tiny(), PlanOptions(gpu=gpu, backend=backend)).refusals[-1]


@pytest.mark.parametrize("gpu", gpu_names())
def test_quantize_plan_and_build_agree_on_the_backend_of_a_gpu(gpu: str, tiny, tmp_path, run_qtk) -> None:
    words = ("quantize", tiny(), "-o", tmp_path / "int4", "--method", "rtn", "--gpu", gpu)
    assert run_qtk(*words).returncode == 0
    planned = run_qtk("plan", tmp_path / "int4", "--gpu", gpu)
    assert (planned.returncode, planned.stderr) == (0, "")
    assert run_qtk("plan", tiny(), "--gpu", gpu, "--bits", 4).returncode == 0
    prepared = () if gpu == "cpu" else ("--prepare-only",)
    built = run_qtk("build-engine", tmp_path / "int4", "-o", tmp_path / "engine", "--gpu", gpu, *prepared, "--json")
    assert built.returncode == 0, built.stderr
    assert json.loads(built.stdout)["backend"] == gpu_profile(gpu).backends[0]


def test_a_refusal_that_a_new_quantization_cures_says_how(tiny, tmp_path, run_qtk) -> None:
    """The README's `qtk quantize merged -o int4`, for a runtime that takes positive scales only."""
    assert run_qtk("quantize", tiny(), "-o", tmp_path / "int4", "--method", "rtn").returncode == 0
    words = ("--gpu", "a10", "--backend", "tensorrt-full", "--prepare-only")
    refused = run_qtk("build-engine", tmp_path / "int4", "-o", tmp_path / "e", *words)
    assert refused.returncode == 2
    assert "quantize with --positive-scales, which --backend tensorrt-full sets by itself" in refused.stderr
    assert run_qtk("quantize", tiny(), "-o", tmp_path / "new", "--method", "rtn", "--positive-scales").returncode == 0
    assert run_qtk("build-engine", tmp_path / "new", "-o", tmp_path / "e", *words).returncode == 0


def test_gpus_command(run_qtk) -> None:
    listed = json.loads(run_qtk("gpus", "--json").stdout)["gpus"]
    assert [gpu["name"] for gpu in listed] == gpu_names()
    shown = run_qtk("gpus")
    assert shown.returncode == 0
    assert "rtx4090" in shown.stdout
