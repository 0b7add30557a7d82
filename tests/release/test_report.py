"""The report: numbers as a reader wants them, accuracy before and after, and nothing said that was not measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from qtk.bench.accuracy.results.choices import ChoiceAnswer, score_choices
from qtk.bench.accuracy.results.likelihood import TaskLikelihood, score_likelihood
from qtk.bench.accuracy.results.programs import score_programs
from qtk.bench.accuracy.results.result import AccuracyResult
from qtk.bench.accuracy.results.score import TaskSource
from qtk.bench.divergence_result import DivergenceResult, Estimate, TextDivergence
from qtk.bench.latency_result import EngineLatency, LatencyReport, Quantiles, ShapeLatency, SpeedRatio
from qtk.bench.options import DivergenceOptions
from qtk.bench.results import measure_into, require_writable, write_result
from qtk.errors import InputError
from qtk.release.material import reportable_directories
from qtk.release.numbers import figure
from qtk.release.report import write_report


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.12345, 3, "0.123"),
        (12.345, 3, "12.3"),
        (1234.5, 3, "1234"),
        (0.99995, 3, "1.000"),
        (0.000447, 3, "4.47e-04"),
        (0.0, 3, "0.00"),
        (8.0, 4, "8.000"),
        (None, 3, "-"),
        (float("nan"), 3, "-"),
        (-33.333, 3, "-33.3"),
    ],
)
def test_figures(value, digits: int, text: str) -> None:
    assert figure(value, digits) == text


def latency(engine: str, rates: dict[tuple[int, int], float]) -> LatencyReport:
    times = Quantiles(mean=1.0, p50=1.0, p90=1.0, p99=1.0)
    shapes = [
        ShapeLatency(
            input_len=entry,
            output_len=output,
            batch_size=1,
            runs=3,
            tokens_per_s=rate,
            standard_error=0.1,
            decode_tokens_per_s=rate,
            ttft_ms=times,
            inter_token_ms=times,
            call_seconds=[1.0],
        )
        for (entry, output), rate in rates.items()
    ]
    measured = EngineLatency(
        engine=engine,
        backend="onnxruntime",
        gpu="cpu",
        dtype="float32",
        accuracy_level=4,
        lm_head_bits=16,
        first_call_ms=1.0,
        shapes=shapes,
    )
    return LatencyReport(processor="p", cores=2, threads=2, load_before=1.0, load_after=3.1, engines=[measured])


def test_each_speed_ratio_has_its_error_and_its_doubt(tmp_path) -> None:
    """Engines measured by turns; and two directories as runs wrote them before, one after the other."""
    slow = latency("engine-float", {(16, 8): 10.0, (64, 32): 20.0})
    fast = latency("engine", {(16, 8): 25.0})
    ratio = SpeedRatio(
        shape="16/8", engine="engine", baseline="engine-float", ratio=2.5, standard_error=0.05, pairs=7,
        in_doubt="engine is noisy: slowest call 4.4 times the fastest, load 3.1 on 2 cores",
    )  # fmt: skip
    together = slow.model_copy(update={"engines": slow.engines + fast.engines, "ratios": [ratio]})
    for name, results in (("by-turns", {"latency": together}), ("before", {"latency-float": slow, "latency": fast})):
        directories = [tmp_path / name / directory for directory in results]
        for directory, result in zip(directories, results.values(), strict=True):
            directory.parent.mkdir(exist_ok=True)
            measure_into(directory, "latency", _Nothing(), {}, lambda result=result: result)
        text = write_report(directories, tmp_path / name / "report", title="Ours").read_text()
        assert "| engine-float | 64/32 | 20.0 | 0.10 |" in text
        if name == "by-turns":
            assert (
                "- engine at 16/8: 2.50 ± 0.050 times the tokens/s of engine-float (7 pairs of calls). In doubt: "
                in text
            )
            assert "| engine | engine-float | 16/8 | 2.50 | 0.050 | 7 | engine is noisy: slowest call 4.4 times" in text
            assert "latency: 2 threads on 2 cores, load 1.0 before and 3.1 after" in text
        else:
            assert (
                "- engine at 16/8: 2.50 ± 0.027 times the tokens/s of engine-float. In doubt: the engines were" in text
            )
            assert "| engine | engine-float | 16/8 | 2.50 | 0.027 | - | the engines were measured one after" in text
        assert "64/32: " not in text, "a shape that only one engine ran has no ratio"


class _Nothing(BaseModel):
    pass


def accuracy(out: Path, passed: int, model: Path | None = None) -> None:
    tasks = {f"Python/{i}": ["passed" if i < passed else "failed"] for i in range(6)}
    likelihoods = {f"Go/{i}": TaskLikelihood(log_likelihood=passed - 9.0 - i % 2, tokens=4) for i in range(6)}
    questions = {f"wic/{i}": ChoiceAnswer(gold=0, generation=int(i >= passed), perplexity=1) for i in range(8)}
    result = AccuracyResult(
        qtk_version="0",
        model=out.name,
        answers=None,
        rules="qtk",
        chat_format="none",
        decoding={},
        sandbox={"level": "namespaces"},
        scores=[
            score_programs(TaskSource("humaneval-x", "python", "tasks.jsonl", "0" * 64), tasks, [1]),
            score_likelihood(TaskSource("likelihood", "go", "x", "0" * 64), likelihoods),
            score_choices(TaskSource("nlp", "wic", "x", "0" * 64), "WiC", "questions", questions, 0),
        ],
        skipped={"humaneval-x go": "go is not installed"},
        seconds=1.0,
        machine={},
    )
    measure_into(out, "accuracy", _Nothing(), {} if model is None else {"model": model}, lambda: result)


def test_accuracy_before_and_after(tmp_path) -> None:
    accuracy(tmp_path / "accuracy-float", 5)
    accuracy(tmp_path / "accuracy", 3)
    assert len(reportable_directories(tmp_path)) == 2
    order = [tmp_path / "accuracy-float", tmp_path / "accuracy"]
    text = write_report(order, tmp_path / "report", title="Ours", before="accuracy-float").read_text()
    assert text.startswith("# Ours\n")
    assert "| accuracy-float | humaneval-x | python | 6 | pass@1 | 83.33 |" in text
    assert (
        "| humaneval-x | python | 6 | 83.33 | 50.00 | -33.33 | -65.30 to 18.43 | 2 | 0 | 0.5 | too few tasks to tell"
        in text
    )
    assert "| accuracy-float | WiC | 8 | 62.50 | 0.000 | generation | 62.50 | 30.6 to 86.3 | 100.0 | - |" in text
    assert "| nlp | wic | 8 | 62.50 | 37.50 | -25.00 | -53.98 to 13.82 | 2 | 0 | 0.5 | too few tasks to tell" in text
    assert "| likelihood | go | 6 | -1.125 | -1.625 | -0.5000 |" in text
    assert (
        "\npass@1 before and after; tolerance 2 points; limits of the change with 95 % confidence each; "
        "before: accuracy-float, after: accuracy:\n\n| suite |" in text
    )
    assert "humaneval-x go: go is not installed" in text
    for absent in ("## Latency", "## Engines", "## Sizes", "## Quantization", "None"):
        assert absent not in text


def test_the_first_call_and_what_the_arithmetic_adds_are_told(tmp_path) -> None:
    estimate = Estimate(mean=0.0042, standard_error=0.0003)
    text = TextDivergence(
        text="all", rows=2, tokens=60, kl=estimate, kl_median=0, kl_p99=0, kl_max=0, top1_agreement=estimate,
        perplexity_reference=8, perplexity=9, loss_increase=estimate, tokens_sha256="0",
    )  # fmt: skip
    result = DivergenceResult(
        qtk_version="0", model="run/engine", reference="run/merged", options=DivergenceOptions(), texts=(text,), pooled=text,
        from_checkpoint=text, engine_settings={"accuracy_level": 4}, seconds=1, machine={},
    )  # fmt: skip
    measure_into(tmp_path / "divergence-engine", "divergence", _Nothing(), {}, lambda: result)
    warm = latency("engine", {(16, 8): 10.0})
    compiling = warm.engines[0].model_copy(update={"compiled_before": False, "first_call_ms": 4321.0})
    cold = warm.model_copy(update={"engines": [compiling]})
    measure_into(tmp_path / "latency", "latency", _Nothing(), {}, lambda: cold)
    said = write_report(sorted(tmp_path.iterdir()), tmp_path / "report", title="Ours").read_text()
    assert "\n| engine | 4 | 60 | 0.00420 | 3.0e-04 | 0.00420 |\n" in said
    assert "\nFirst call of engine: 4321 ms, with the compiling of its kernels.\n" in said


def test_nothing_to_report_is_a_sentence(tmp_path) -> None:
    with pytest.raises(InputError, match="nothing to report"):
        reportable_directories(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        reportable_directories(tmp_path / "nowhere")


def test_a_result_file_is_checked_before_the_work_and_written_whole(tmp_path) -> None:
    path = tmp_path / "r.json"
    write_result(latency("e", {}), path)
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    for target, complaint in (
        (path, "exists already"),
        (tmp_path, "the name of a file is needed"),
        (tmp_path / "no" / "r.json", "is not a directory"),
    ):
        with pytest.raises(InputError, match=complaint):
            require_writable(target)
    require_writable(path, overwrite=True)
