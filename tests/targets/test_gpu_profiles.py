"""The shipped GPU profiles, and `qtk gpus`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qtk.checkpoint.manifest import file_digest, read_manifest
from qtk.engines.build import build_engine
from qtk.engines.options import BuildOptions, PlanOptions
from qtk.engines.plan import plan_engine
from qtk.errors import InputError
from qtk.recipes.schema import BuildStage, QuantizeStage, Recipe
from qtk.recipes.steps import recipe_steps
from qtk.targets.gpu import GpuProfile, gpu_names, gpu_profile, gpu_profiles

NAMES = (
    "a10 a100-40g a100-80g a2 a30 a40 b200 cpu h100 h200 l4 l40s rtx-a6000 rtx-pro6000 rtx3090 rtx4060 rtx4070 rtx4090 "
    "rtx5060 rtx5070 rtx5080 rtx5090 rtx6000-ada t4"
)
NO_PUBLISHED_RATE = ("rtx-pro6000",)


def test_every_shipped_profile_is_complete_and_says_where_from() -> None:
    for profile in gpu_profiles():
        assert profile.sources
        if profile.name != "t4":  # no runtime that qtk builds for runs INT4 on it
            assert profile.default_backend == profile.backends[0]
        if profile.is_cpu:
            assert profile.default_backend == "onnxruntime"
            continue
        assert all(source.startswith("https://") for source in profile.sources)
        assert any("nvidia.com/en-us/" in source for source in profile.sources), "the product's page"
        assert profile.sm in (75, 80, 86, 89, 90, 100, 120)
        assert profile.memory_bytes
        assert profile.bandwidth_gb_s
        assert bool(profile.fp16_tflops) == (profile.name not in NO_PUBLISHED_RATE)
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


BUILT_FOR = [name for name in gpu_names() if gpu_profile(name).backends]
# One GPU of each kind is enough for the fast tests.
OF_EACH_KIND = {(gpu_profile(name).backends, gpu_profile(name).compute_capability): name for name in BUILT_FOR}.values()


@pytest.mark.parametrize(
    "gpu", [pytest.param(name, marks=[] if name in OF_EACH_KIND else pytest.mark.slow) for name in BUILT_FOR]
)
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


def test_a_gpu_that_runs_no_engine_of_qtk_s_says_what_it_can(run_qtk, tiny, tmp_path) -> None:
    assert gpu_profile("t4").backends == ()
    assert "t4" in run_qtk("gpus").stdout
    planned = run_qtk("plan", tiny(), "--gpu", "t4")
    assert planned.returncode == 3
    assert "TensorRT-RTX runs INT4 from SM80" in planned.stderr
    assert "for this GPU: vllm" in planned.stderr
    assert "--gpu t4 --backend vllm" in planned.stderr
    for name, backends in (
        ("b200", ("tensorrt-full", "tensorrt-edgellm")),
        ("h200", ("tensorrt-full", "tensorrt-llm")),
        ("rtx5070", ("tensorrt", "tensorrt-full", "tensorrt-edgellm")),
    ):
        assert gpu_profile(name).backends == backends


@pytest.fixture
def own(tmp_path) -> Path:
    """A profile of the user's own, with a capability that YAML reads as a number."""
    path = tmp_path / "my-gpu.yaml"
    path.write_text("title: My GPU\ncompute_capability: 8.6\nmemory_gib: 8\nbandwidth_gb_s: 300\n")
    return path


def test_an_own_profile_is_given_by_its_path(own, tiny, tmp_path) -> None:
    profile = gpu_profile(str(own))
    assert (profile.name, profile.sm, profile.memory_bytes) == ("my-gpu", 86, 8 * 2**30)
    plan = plan_engine(tiny(), PlanOptions(gpu=str(own)))
    assert (plan.gpu, plan.memory.gpu, plan.refusals) == ("my-gpu", "My GPU", [])


def test_an_own_profile_is_recorded_by_its_content(own, tmp_path, tiny) -> None:
    out = tmp_path / "prepared"
    options = BuildOptions(gpu=str(own), prepare_only=True, max_input_len=32, max_output_len=8)
    engine = build_engine(tiny(), out, options)
    assert engine.own_gpu is not None
    assert GpuProfile(**engine.own_gpu) == gpu_profile(str(own))
    inputs = {record.role: record.files for record in read_manifest(out).inputs}
    assert inputs["GPU profile"] == {own.name: file_digest(own).sha256}


@pytest.mark.parametrize(
    ("text", "complaints"),
    [
        (
            'title: T\ncompute_capability: "86"\nmemory_gib: -8\nbandwith_gb_s: 3\n',
            [
                'write it as NVIDIA does, for example "8.6"',
                "memory_gib: Input should be greater than 0",
                "bandwith_gb_s: no such",
            ],
        ),
        ("title: T\n", ["compute_capability: Field required", "memory_gib: Field", "bandwidth_gb_s: Field"]),
        ("- a\n", ["is not a valid GPU profile"]),
        ("title: [\n", ["is not valid YAML"]),
    ],
)
def test_every_wrong_field_of_an_own_profile_is_named(tmp_path, text: str, complaints: list[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        gpu_profile(str(path))
    assert all(complaint in str(caught.value) for complaint in complaints), caught.value


def test_an_own_profile_does_not_take_a_name_that_ships(tmp_path, own) -> None:
    with pytest.raises(InputError, match="Rename the file"):
        gpu_profile(str(own.rename(tmp_path / "a10.yaml")))
    with pytest.raises(InputError, match="no such file"):
        gpu_profile("nowhere.yaml")


def test_a_recipe_finds_a_profile_beside_itself(own) -> None:
    recipe = Recipe(name="x", model="m", quantize=QuantizeStage(gpu=own.name), build=BuildStage(gpu=own.name))
    steps = {step.name: step for step in recipe_steps(recipe, own.parent)}
    for name in ("quantize", "build"):
        assert own in steps[name].texts, "a changed profile makes the step out of date"
        assert steps[name].options.values["gpu"] == own.name
