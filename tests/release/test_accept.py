"""`qtk accept` on a real cpu engine: it passes a sound one, and finds each fault it looks for."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.quantized_checkpoint import write_quantized

from qtk.checkpoint.manifest import verify_chain
from qtk.engines.build import build_engine
from qtk.engines.onnxruntime.executor import OnnxRuntimeExecutor
from qtk.engines.options import BuildOptions
from qtk.quantization.scheme_model import LinearScheme
from qtk.release.accept import AcceptOptions, accept

QUICK = AcceptOptions(shapes="16/8,64/65", seconds=0)


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
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
    assert record == json.loads(done.stdout)
    assert record["verdict"] == "passed"
    assert record["first_call_ms"] == record["latency"]["first_call_ms"] > 0
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
    assert [shape["input_len"] for shape in record["latency"]["shapes"]] == [16]
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


def test_a_shape_that_fails_leaves_the_others(engine, monkeypatch) -> None:
    """As where memory ends at the longest shape: what came before is worth keeping."""

    def most(logits: np.ndarray, step) -> np.ndarray:  # type: ignore[no-untyped-def]
        if step.position_ids.max() == 70:
            raise RuntimeError("out of device memory")
        return logits

    broken(monkeypatch, most)
    record = accept(engine, AcceptOptions(shapes="16/8,64/30,8/4", seconds=0))
    assert record.latency is not None
    assert [shape.input_len for shape in record.latency.shapes] == [16, 8]
    failed = {check.name: check.meaning for check in record.checks if not check.passed}
    assert "out of device memory" in failed["latency 64/30"]
    assert record.verdict == "failed"


def test_the_first_call_comes_first_and_its_failure_is_kept(engine, monkeypatch) -> None:
    lengths: list[int] = []
    broken(monkeypatch, lambda logits, step: lengths.append(step.input_ids.shape[1]) or logits)
    accept(engine, AcceptOptions(shapes="23/3", seconds=0))
    assert lengths[:3] == [23, 1, 1]
    broken(monkeypatch, lambda logits, step: 1 / 0)
    record = accept(engine, QUICK)
    assert (record.verdict, record.first_call_ms, record.latency) == ("failed", None, None)
    assert record.checks[0].name == "first call"
    assert "ZeroDivisionError" in record.checks[0].meaning


def broken(monkeypatch: pytest.MonkeyPatch, change) -> None:  # type: ignore[no-untyped-def]
    run = OnnxRuntimeExecutor.run
    monkeypatch.setattr(OnnxRuntimeExecutor, "run", lambda self, step: change(run(self, step).copy(), step))


def test_each_fault_is_found_by_its_check(engine, monkeypatch) -> None:
    def failed() -> set[str]:
        return {check.name for check in accept(engine, QUICK).checks if not check.passed}

    assert failed() == set()
    random = np.random.default_rng(0)
    faults = {
        "repeatability": lambda logits, step: logits + random.normal(0, 5, logits.shape).astype(np.float32),
        "decode against scoring": lambda logits, step: (
            np.roll(logits, 1, -1) if step.input_ids.shape[1] == 1 else logits
        ),
        "batch": lambda logits, step: logits + 1.0 * (step.input_ids.shape[0] > 1),
        "batched decoding": lambda logits, step: np.roll(logits, 1, -1) if step.input_ids.shape == (2, 1) else logits,
        "whole length": lambda logits, step: 1 / 0 if step.position_ids.max() == 126 else logits,
    }
    for name, fault in faults.items():
        with monkeypatch.context() as patch:
            broken(patch, fault)
            assert name in failed()


def test_a_failed_check_exits_3_and_is_recorded(engine, tiny, tmp_path, run_qtk) -> None:
    words = ("--shapes", "16/8", "--seconds", "0", "--reference", tiny(), "--max-kl", "1e-5")
    done = run_qtk("accept", engine, "-o", tmp_path / "record", *words)
    assert done.returncode == 3
    assert "divergence" in done.stderr
    assert (tmp_path / "record" / "result.json").is_file()
    assert run_qtk("accept", tmp_path, "-o", tmp_path / "none").returncode == 2
    assert not (tmp_path / "none").exists()
