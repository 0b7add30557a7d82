"""`qtk accept` on a real cpu engine: it passes a sound one, and finds each fault it looks for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.executors import changed

from qtk.bench.options import LOGIT_TOLERANCE, ROUNDED_LOGIT_TOLERANCE, AcceptOptions
from qtk.checkpoint.manifest import verify_chain
from qtk.engines.build import build_engine
from qtk.engines.options import BuildOptions
from qtk.engines.sessions.executor import Forward
from qtk.engines.sessions.session import DecoderSession
from qtk.quantization.scheme_model import LinearScheme
from qtk.release.accept import Acceptance, accept, accept_session

NOISE = np.random.default_rng(0)
Change = Callable[[np.ndarray, Forward], np.ndarray]
QUICK = AcceptOptions(shapes="16/8,64/65", seconds=0)


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory, write_quantized):
    return write_quantized(tiny(), tmp_path_factory.mktemp("accept") / "int4", "gptq", LinearScheme(4, 32, True))


@pytest.fixture(scope="module")
def engine(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("accept") / "engine"
    build_engine(model, out, BuildOptions(max_input_len=96, max_output_len=32, max_batch_size=2, accuracy_level=0))
    return out


def test_command_records_a_sound_engine(engine, model, tmp_path, run_qtk) -> None:
    out = tmp_path / "record"
    words = ("--shapes", "16/8", "--seconds", "0", "--reference", model)
    done = run_qtk("accept", engine, "-o", out, *words, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "result.json").read_text())
    assert record.items() <= json.loads(done.stdout).items()
    assert record["verdict"] == "passed"
    assert record["first_call_ms"] == record["latency"]["engines"][0]["first_call_ms"] > 0
    assert record["compiled_before"] is None, "ONNX Runtime compiles nothing at first use"
    assert [check["name"] for check in record["checks"]] == [
        "repeatability",
        "whole length",
        "text",
        "decode against scoring",
        "batch",
        "batched decoding",
        "divergence",
    ]
    assert record["checks_not_run"] == {"memory": "the engine has no memory table"}
    assert all(check["passed"] for check in record["checks"])
    assert record["checks"][-1]["figure"] < 1e-6, "level 0 computes what the checkpoint means"
    assert record["shapes_not_run"] == []
    assert [shape["input_len"] for shape in record["latency"]["engines"][0]["shapes"]] == [16]
    assert not [finding for finding in verify_chain(out) if finding.bad]


def test_a_shape_beyond_the_limits_leaves_the_record_incomplete(engine, tmp_path, run_qtk) -> None:
    done = run_qtk("accept", engine, "-o", tmp_path / "record", "--shapes", "16/8,64/65", "--seconds", "0")
    assert done.returncode == 3
    assert "but not 64/65: build it with a larger --max-input-len" in done.stderr
    assert "Verdict: incomplete." in done.stdout
    assert "Not run: divergence: no --reference was given." in done.stdout
    assert "First call:" in done.stdout
    record = json.loads((tmp_path / "record" / "result.json").read_text())
    assert (record["verdict"], record["shapes_not_run"]) == ("incomplete", ["64/65"])
    assert record["checks_not_run"].keys() == {"divergence", "memory"}


def accept_changed(engine: Path, options: AcceptOptions, change: Change) -> Acceptance:
    """The acceptance of an engine whose logits go through `change`."""
    return accept_session(changed(DecoderSession.open(engine, 1), change), options)


def test_a_shape_that_fails_leaves_the_others(engine) -> None:
    """As where memory ends at the longest shape: what came before is worth keeping."""

    def most(logits: np.ndarray, forward: Forward) -> np.ndarray:
        if forward.position_ids.max() == 70:
            raise RuntimeError("out of device memory")
        return logits

    record = accept_changed(engine, AcceptOptions(shapes="16/8,64/30,8/4", seconds=0), most)
    assert record.latency is not None
    assert [shape.input_len for shape in record.latency.engines[0].shapes] == [16, 8]
    failed = {check.name: check.meaning for check in record.checks if not check.passed}
    assert "out of device memory" in failed["latency 64/30"]
    assert record.verdict == "failed"


def test_the_first_call_comes_first(engine) -> None:
    lengths: list[int] = []

    def watch(logits: np.ndarray, forward: Forward) -> np.ndarray:
        lengths.append(forward.input_ids.shape[1])
        return logits

    accept_changed(engine, AcceptOptions(shapes="23/3", seconds=0), watch)
    assert lengths[:3] == [23, 1, 1]


def test_a_first_call_that_fails_is_recorded(engine) -> None:
    def fail(logits: np.ndarray, forward: Forward) -> np.ndarray:
        raise ZeroDivisionError

    record = accept_changed(engine, QUICK, fail)
    assert (record.verdict, record.first_call_ms, record.latency) == ("failed", None, None)
    assert record.checks[0].name == "first call"
    assert "ZeroDivisionError" in record.checks[0].meaning


def noise(logits: np.ndarray, forward: Forward) -> np.ndarray:
    """Other logits in each run."""
    return logits + NOISE.normal(0, 5, logits.shape).astype(np.float32)


def shifted_when_decoding(logits: np.ndarray, forward: Forward) -> np.ndarray:
    return np.roll(logits, 1, -1) if forward.input_ids.shape[1] == 1 else logits


def moved_in_a_batch(logits: np.ndarray, forward: Forward) -> np.ndarray:
    return logits + 1.0 * (forward.input_ids.shape[0] > 1)


def shifted_when_decoding_a_batch(logits: np.ndarray, forward: Forward) -> np.ndarray:
    return np.roll(logits, 1, -1) if forward.input_ids.shape == (2, 1) else logits


def broken_at_the_last_position(logits: np.ndarray, forward: Forward) -> np.ndarray:
    if forward.position_ids.max() == 126:
        raise RuntimeError("beyond the cache")
    return logits


@pytest.mark.parametrize(
    ("check", "fault"),
    [
        ("repeatability", noise),
        ("decode against scoring", shifted_when_decoding),
        ("batch", moved_in_a_batch),
        ("batched decoding", shifted_when_decoding_a_batch),
        ("whole length", broken_at_the_last_position),
    ],
)
def test_each_fault_is_found_by_its_check(engine, check: str, fault: Change) -> None:
    record = accept_changed(engine, QUICK, fault)
    assert check in {result.name for result in record.checks if not result.passed}


def moved_by(amount: float) -> Change:
    return lambda logits, forward: logits + amount * (forward.input_ids.shape[0] > 1)


def test_the_default_engine_is_held_to_what_its_8_bit_activations_allow(model, engine, tmp_path) -> None:
    build_engine(model, tmp_path / "rounded", BuildOptions(max_input_len=96, max_output_len=32, max_batch_size=2))
    between = moved_by((LOGIT_TOLERANCE + ROUNDED_LOGIT_TOLERANCE) / 2)
    quick = AcceptOptions(shapes="16/8", seconds=0)
    assert accept_changed(tmp_path / "rounded", quick, between).verdict == "passed"
    assert accept_changed(engine, quick, between).verdict == "failed"
    beyond = accept_changed(tmp_path / "rounded", quick, moved_by(2 * ROUNDED_LOGIT_TOLERANCE))
    [failed] = [check for check in beyond.checks if not check.passed]
    assert failed.name == "batch"
    assert failed.meaning.startswith(
        "largest difference of a logit: of a row alone, to the same row beside a longer one"
    )
    given = quick.model_copy(update={"tolerance": 0.01})
    assert accept_changed(tmp_path / "rounded", given, between).verdict == "failed", "a given tolerance stands"
    wide = AcceptOptions(shapes="16/8", seconds=0, tolerance=1e9)
    assert "repeatability" in {c.name for c in accept_changed(engine, wide, noise).checks if not c.passed}


def test_a_sound_engine_passes_every_check(engine) -> None:
    assert [check.name for check in accept(engine, QUICK).checks if not check.passed] == []


def test_a_failed_check_exits_3_and_is_recorded(engine, tiny, tmp_path, run_qtk) -> None:
    words = ("--shapes", "16/8", "--seconds", "0", "--reference", tiny(), "--max-kl", "1e-5")
    done = run_qtk("accept", engine, "-o", tmp_path / "record", *words)
    assert done.returncode == 3
    assert "divergence" in done.stderr
    assert (tmp_path / "record" / "result.json").is_file()
    assert run_qtk("accept", tmp_path, "-o", tmp_path / "none").returncode == 2
    assert not (tmp_path / "none").exists()


def test_a_failed_check_exits_3_with_nobody_reading(engine, tiny, tmp_path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    words = ("accept", engine, "-o", tmp_path / "record", "--shapes", "16/8", "--seconds", "0")
    failing = ("--reference", tiny(), "--max-kl", "1e-5")
    command = [sys.executable, "-m", "qtk", *map(str, (*words, *failing))]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 3, done.stderr
    assert "did not pass: divergence" in done.stderr
