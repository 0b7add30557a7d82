"""The registry of runtimes: one record and one module make a new backend work in every command that names backends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.toy_runtime import TOY

from qtk.engines.options import BuildOptions
from qtk.engines.sessions.session import gives_logits
from qtk.errors import InputError
from qtk.quantization.scheme_model import LinearScheme
from qtk.targets.gpu import gpu_profile
from qtk.targets.runtimes import RUNTIMES, dependencies, engine_parts, engine_runtimes, load_part


@pytest.fixture
def toy(monkeypatch) -> None:
    """The toy runtime in the registry."""
    monkeypatch.setitem(RUNTIMES, "toy", TOY)


@pytest.fixture
def engine(toy, tiny, tmp_path, run_qtk, write_quantized) -> Path:
    model = write_quantized(tiny(), tmp_path / "int4", "gptq", LinearScheme(4, 32, True))
    words = ("--gpu", "a10", "--backend", "toy", "--max-input-len", "32", "--max-output-len", "16")
    done = run_qtk("build-engine", model, "-o", tmp_path / "engine", *words)
    assert done.returncode == 0, done.stderr
    return tmp_path / "engine"


def test_a_registered_runtime_is_a_backend_of_the_gpus_that_it_runs_on(toy) -> None:
    assert gpu_profile("a10").backends[-1] == "toy"
    assert "toy" not in gpu_profile("l4").backends


def test_its_engine_generates(engine, run_qtk) -> None:
    done = run_qtk("generate", engine, "--prompt", "abc", "--max-new-tokens", "4", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert [after - before for before, after in zip(row["tokens"], row["tokens"][1:], strict=False)] == [1, 1, 1]


def test_its_engine_has_a_latency(engine, tmp_path, run_qtk) -> None:
    words = ("--shapes", "8/4", "--warmups", "0", "--runs", "1", "--seconds", "0", "-o", tmp_path / "latency")
    done = run_qtk("bench", "latency", engine, *words)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "latency" / "result.json").read_text())["engines"][0]["backend"] == "toy"


def test_plan_asks_its_backend(toy, tiny, run_qtk) -> None:
    fits = run_qtk(
        "plan", tiny(), "--gpu", "a10", "--backend", "toy", "--max-input-len", "32", "--max-output-len", "16"
    )
    assert fits.returncode == 0, fits.stderr
    refused = run_qtk("plan", tiny(), "--gpu", "a10", "--backend", "toy")
    assert refused.returncode == 3
    assert "the toy cannot count that far" in refused.stderr


def test_doctor_says_what_it_needs_and_that_nobody_ran_it(toy, run_qtk) -> None:
    diagnosis = json.loads(run_qtk("doctor", "--json").stdout)
    assert {"name": "toy-counter", "kind": "program", "found": None, "get": "carve one"}.items() <= next(
        part for part in diagnosis["parts"] if part["name"] == "toy-counter"
    ).items()
    abilities = {ability["what"]: ability for ability in diagnosis["abilities"]}
    build = abilities["build the toy runtime engines (experimental: not run on a GPU here)"]
    assert (build["possible"], "toy-counter is missing" in build["why"]) == (False, True)


def test_an_unknown_backend_is_refused_with_the_known_ones(tiny, tmp_path, run_qtk) -> None:
    done = run_qtk("build-engine", tiny(), "-o", tmp_path / "engine", "--backend", "tensorflow")
    assert done.returncode == 2
    assert "--backend: 'tensorflow' is not a backend; qtk has auto, onnxruntime, tensorrt," in done.stderr
    with pytest.raises(InputError, match="qtk builds engines for onnxruntime"):
        engine_parts("vllm")


@pytest.mark.parametrize("name", engine_runtimes())
def test_every_record_names_code_that_exists(name: str) -> None:
    parts = engine_parts(name)
    assert bool(parts.executor) != bool(parts.session), "one or the other runs it"
    for place in filter(None, (parts.builder, parts.executor, parts.session)):
        assert isinstance(load_part(place), type)
    assert gives_logits(name) == bool(parts.executor)


def test_help_says_which_backends_are_experimental() -> None:
    help_text = BuildOptions.model_fields["backend"].description or ""
    assert help_text.endswith("Experimental, not run on a GPU here: tensorrt-full, tensorrt-edgellm, tensorrt-llm.")


def test_each_dependency_is_listed_once() -> None:
    names = [need.name for need in dependencies()]
    assert len(names) == len(set(names))
    assert {"tensorrt-rtx-cu13", "tensorrt", "trtllm-build", "tensorrt-edgellm-export"} <= set(names)
