"""What is before and what is after: from the chain of manifests, whatever was measured first."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

from qtk.bench.accuracy.results.programs import score_programs
from qtk.bench.accuracy.results.result import AccuracyResult
from qtk.bench.accuracy.results.score import TaskSource
from qtk.bench.results import measure_into
from qtk.calibration.options import CalibrationOptions
from qtk.engines.build import build_engine
from qtk.engines.options import BuildOptions
from qtk.quantization.options import QuantizeOptions
from qtk.quantization.quantize import quantize_model
from qtk.release.material import reportable_directories
from qtk.release.report import write_report

Score = Callable[..., None]


class _Nothing(BaseModel):
    pass


@pytest.fixture(scope="module")
def chain(tiny, tmp_path_factory) -> Path:
    """A float model, INT4 of it, and an engine of each."""
    place = tmp_path_factory.mktemp("chain")
    shutil.copytree(tiny(), place / "base")
    quantize_model(place / "base", place / "int4", QuantizeOptions(method="rtn", group_size=32), CalibrationOptions())
    for model, engine in (("base", "engine-float"), ("int4", "engine")):
        build_engine(place / model, place / engine, BuildOptions(max_input_len=32, max_output_len=16))
    return place


@pytest.fixture
def folder(chain, tmp_path) -> Path:
    shutil.copytree(chain, tmp_path / "work")
    return tmp_path / "work"


def score(out: Path, passed: int, model: str | None = None, tasks: int = 200) -> None:
    """A result of `model`, a directory beside it; of stored answers without one."""
    verdicts = {f"T/{n}": ["passed" if n < passed else "failed"] for n in range(tasks)}
    result = AccuracyResult(
        qtk_version="0", model=model, answers=None if model else "answers.jsonl", rules="qtk", chat_format=None,
        decoding={}, sandbox={}, scores=[score_programs(TaskSource("own", "python", "x", "0"), verdicts, [1])],
        seconds=1.0, machine={},
    )  # fmt: skip
    answers = out.parent / "answers.jsonl"
    answers.touch()
    inputs = {"model": out.parent / model} if model else {"answers": answers}
    measure_into(out, "accuracy", _Nothing(), inputs, lambda: result)


def report(folder: Path, before: str | None = None) -> str:
    directories = reportable_directories(folder)
    return write_report(directories, folder / "report", title="T", before=before, overwrite=True).read_text()


@pytest.mark.parametrize(
    "models", [("engine", "engine-float"), ("int4", "base"), ("engine", "base"), ("int4", "engine-float")]
)
def test_the_float_ancestor_is_before_though_int4_was_measured_first(folder, models, run_qtk) -> None:
    quantized, unquantized = models
    score(folder / "one", 0, quantized)
    score(folder / "two", 200, unquantized)
    for name, started in (("one", 1), ("two", 2)):
        os.utime(folder / name, (started, started))
    done = run_qtk("report", folder)
    assert done.returncode == 0, done.stderr
    text = (folder / "report" / "report.md").read_text()
    assert "before: two, after: one:" in text
    assert "| own | python | 200 | 100.0 | 0.000 | -100.0 |" in text
    assert "beyond tolerance" in text
    assert "Not compared" not in text


def test_two_that_are_not_related_are_not_compared_until_somebody_says_how(folder, capsys, run_qtk) -> None:
    score(folder / "good", 200)
    score(folder / "bad", 0)
    text = report(folder)
    assert "| verdict |" not in text
    assert "stored answers, of which no model is known" in text
    # Which of the two is named first is the order in which they were written, and they may have the same second.
    assert "`qtk report` with --before " in text
    assert "--before bad" in text
    assert "--before good" in text
    assert "Not compared: " in capsys.readouterr().err
    assert "before: good, after: bad:" in report(folder, before="good")
    assert "before: bad, after: good:" in report(folder, before="bad")
    unknown = run_qtk("report", folder, "-o", folder / "r", "--before", "nobody")
    assert unknown.returncode == 2
    assert "There are: " in unknown.stderr
    assert not (folder / "r").exists()


def test_both_or_neither_quantized_is_no_order(folder) -> None:
    score(folder / "a", 100, "int4")
    score(folder / "b", 120, "engine")
    text = report(folder)
    assert "a (a quantized model) and b (a quantized model) scored the same tasks" in text
    assert "| verdict |" not in text
    score(folder / "c", 130, "engine-float")
    text = report(folder)
    assert "before: c, after: a:" in text
    assert "before: c, after: b:" in text
    assert "Not compared" not in text


def test_a_float_model_of_another_chain_is_not_before(folder, tiny) -> None:
    shutil.copytree(tiny("qwen2"), folder / "other")
    score(folder / "a", 100, "int4")
    score(folder / "b", 120, "other")
    assert "a (a quantized model) and b (a float model)" in report(folder)


def test_a_model_that_was_made_anew_since_does_not_tell(folder) -> None:
    score(folder / "a", 100, "engine")
    score(folder / "b", 120, "engine-float")
    build_engine(folder / "int4", folder / "engine-float", BuildOptions(max_input_len=16), overwrite=True)
    text = report(folder)
    assert "; before:" not in text
    assert "a model that is gone, or was made anew since" in text


def test_the_order_of_a_comparison_that_was_asked_for_stands(folder, run_qtk) -> None:
    score(folder / "good", 200)
    score(folder / "bad", 0)
    assert run_qtk("bench", "compare", folder / "good", folder / "bad", "-o", folder / "compared").returncode == 0
    text = report(folder)
    assert "before: good, after: bad:" in text
    assert "Not compared" not in text


def test_other_tasks_are_passed_over(folder) -> None:
    score(folder / "a", 100, "int4")
    score(folder / "b", 20, "base", tasks=20)
    text = report(folder)
    assert "Not compared" not in text
    assert "| verdict |" not in text
