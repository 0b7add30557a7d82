"""A folder as a long release leaves it, made up: five suites in many languages, 62 blocks, 12 shapes, long names, HTML in texts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from qtk.bench.accuracy.results.choices import ChoiceAnswer, score_choices
from qtk.bench.accuracy.results.likelihood import TaskLikelihood, score_likelihood
from qtk.bench.accuracy.results.programs import score_programs
from qtk.bench.accuracy.results.result import AccuracyResult
from qtk.bench.accuracy.results.score import Score, TaskSource
from qtk.bench.divergence_result import DivergenceResult, Estimate, TextDivergence
from qtk.bench.latency_result import EngineLatency, LatencyReport, Quantiles, ShapeLatency, paired_ratio
from qtk.bench.options import DivergenceOptions, SampleOptions
from qtk.bench.results import measure_into
from qtk.bench.sample_result import SampleResult, SampleText
from qtk.checkpoint.manifest import ManifestRecorder
from qtk.engines.description import EngineDescription, EngineLimits, MemoryPart, MemoryTable, Quantization, Stage
from qtk.progress import warn
from qtk.quantization.report import LOG_NAME, LayerRecord, QuantizeReport, ReadBack
from qtk.release.gates import Gate

ENGINE = "engine-codefuse-deepseek-33b-with-a-name-that-goes-on-and-on-int4-g128-a10"
HOSTILE = "<script>alert('x')</script><img src=https://example.org/x.png>&\"'"
SHAPES = [(2**n, 2 ** (n - 1)) for n in range(1, 13)]
_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_LANGUAGES = (
    "python",
    "java",
    "cpp",
    "javascript",
    "go",
    "rust",
    "typescript",
    "a-language-with-a-very-long-name-indeed",
)


class _Nothing(BaseModel):
    pass


def made_up_run(folder: Path, *, blocks: int = 62) -> list[Gate]:
    """Writes the directories into `folder`; returns gates of which some pass, some fail and some were not measured."""
    adapter = {"kind": "LoRA", "rank": 64, "alpha": 32.0, "weight": 1.0, "tensors": 868}
    _write(folder / "merged", "merge", {"config.json": "{}"}, {"adapters": [adapter], "tensors_changed": 434}, {})
    _quantized(folder / "quantized", blocks)
    _engine(folder / ENGINE)
    _engine(folder / "engine-float", quantized=False)
    _latency(folder / "latency")
    _divergence(folder / "divergence")
    _accuracy(folder / "accuracy-float", folder / "engine-float", 0)
    _accuracy(folder / "accuracy", folder / ENGINE, 7)
    texts = (
        SampleText(engine="engine-float", prompt="def f(x):", text="\n    return x < 1 and x > 0"),
        SampleText(engine=ENGINE, prompt="<b>bold</b>", text=HOSTILE + " " + "x" * 300),
    )
    measure_into(
        folder / "sample", "sample", _Nothing(), {}, lambda: SampleResult(options=SampleOptions(), texts=texts)
    )
    return [
        Gate(metric="accuracy-drop", suite="humaneval-x", at_most=2),
        Gate(metric="pass-rate", suite="humaneval-x", language="python", at_least=70),
        Gate(metric="kl", at_most=0.1),
        Gate(metric="kl", text="an absent text", at_most=0.1),
        *(Gate(metric="tokens-per-s", shape=f"{i}/{o}", at_least=21.0) for i, o in SHAPES[-4:]),
        Gate(metric="memory", at_most=22),
        Gate(metric="size", at_most=20),
        Gate(metric="sandbox", level="bubblewrap"),
    ]


def _write(directory: Path, kind: str, files: dict[str, str], notes: dict[str, Any], inputs: dict[str, Path]) -> None:
    directory.mkdir(parents=True)
    recorder = ManifestRecorder(kind, {"calibration": "python-stdlib"})
    warn(f"{directory.name}: {HOSTILE}")
    for role, path in inputs.items():
        recorder.add_input(role, path, [])
    for name, content in files.items():
        (directory / name).write_text(content)
    recorder.notes |= notes
    recorder.write(directory, directory, 10**9)


def _quantized(directory: Path, blocks: int) -> None:
    records = []
    for block in range(blocks):
        for number, linear in enumerate(_LINEARS):
            part = "self_attn" if number < 4 else "mlp"
            error = 2e-4 * (1 + number) * (1 + 0.5 * math.sin(block / 5 + number)) * 1.05**block
            records.append(
                LayerRecord(
                    layer=f"model.layers.{block}.{part}.{linear}", method="gptq", bits=4, group_size=128, symmetric=True,
                    error_before=3 * error, error_after=error, damping=0.01, seconds=1.0,
                )
            )  # fmt: skip
    report = QuantizeReport(
        output="quantized", method="gptq", format="gptq", bits=4, group_size=128, symmetric=True, linears=len(records),
        left_in_float=["lm_head"], fell_back_to_rtn=["model.layers.3.mlp.down_proj"], calibration_rows=128,
        calibration_rows_offered=128, calibration_tokens=262144, compute_dtype="bfloat16", mean_error_before=0.02,
        mean_error_after=0.008, float_bytes=67 * 10**9, quantized_bytes=18 * 10**9, seconds=8123.0,
        peak_memory_bytes=20 * 10**9, activation_bytes=1, spilled_bytes=0, held_back_kl={},
        read_back=ReadBack(linears=len(records), bits_per_weight=4.2, blocks=blocks, tokens=64, largest_difference=0.0),
    )  # fmt: skip
    log = "\n".join(record.model_dump_json() for record in records)
    files = {LOG_NAME: log, "config.json": '{"quantization_config": {}}'}
    notes, inputs = {"report": report.model_dump()}, {"model": directory.parent / "merged"}
    _write(directory, "quantized-model", files, notes, inputs)


def _engine(directory: Path, *, quantized: bool = True) -> None:
    gib = 2**30
    parts = [
        MemoryPart(name="weights", bytes=int(15.9 * gib), how="4-bit codes, scales of 16 bits, the embedding and the head in 16 bits"),
        MemoryPart(name="cache", bytes=int(0.72 * gib), how="1536 positions of 62 blocks, 8 heads of 128, keys and values"),
        MemoryPart(name="activations", bytes=int(0.4 * gib), how="an upper bound, at the longest prompt"),
        MemoryPart(name="the driver's context and the runtime's libraries", bytes=gib, how="a figure commonly seen, rounded up"),
    ]  # fmt: skip
    memory = MemoryTable(
        gpu="NVIDIA A10", available_bytes=int(22.5 * gib), parts=parts, needed_bytes=sum(part.bytes for part in parts),
        fits=True, decode_bound_tokens_per_s=33.8, bound_of="weights and cache read once for a token",
    )  # fmt: skip
    description = EngineDescription(
        architecture="LlamaForCausalLM", backend="tensorrt", gpu="a10", dtype="float16", lm_head_bits=16,
        limits=EngineLimits(max_batch=1, max_input_len=4096, max_output_len=2048, max_positions=6144), vocab_size=32256, hidden_size=7168,
        num_layers=62, num_kv_heads=8, head_dim=128, windows=(None,) * 62, stop_tokens=(2,),
        stages=(Stage(file="weights", layers=(0, 62), inputs=(), outputs=(), bytes=200_000),),
        quantization=Quantization(bits=4, group_size=128, symmetric=True, method="gptq") if quantized else None,
        memory=memory if quantized else None,
    )  # fmt: skip
    source = directory.parent / ("quantized" if quantized else "merged")
    files = {"engine.json": description.model_dump_json(), "weights": "w" * (200_000 if quantized else 700_000)}
    _write(directory, "engine", files, {}, {"model": source})


def _latency(directory: Path) -> None:
    engines = [_timed("engine-float", 8.1), _timed(ENGINE, 21.7)]
    ratios = [paired_ratio(*engines, shape.name, load=1.0, cores=16) for shape in engines[0].shapes]
    report = LatencyReport(
        processor="p",
        cores=16,
        threads=16,
        load_before=0.2,
        load_after=1.0,
        engines=engines,
        ratios=[r for r in ratios if r],
    )
    measure_into(directory, "latency", _Nothing(), {}, lambda: report)


def _timed(engine: str, rate: float) -> EngineLatency:
    shapes = []
    for number, (entry, output) in enumerate(SHAPES):
        times = Quantiles(mean=900 / rate, p50=900 / rate, p90=1100 / rate, p99=1500 / rate)
        speed = rate * (1 - 0.012 * number)
        shapes.append(
            ShapeLatency(
                input_len=entry, output_len=output, batch_size=1, runs=10, tokens_per_s=speed, standard_error=0.02 * speed,
                decode_tokens_per_s=1.1 * speed, ttft_ms=times, inter_token_ms=times if output > 1 else None,
                call_seconds=[output / speed * (1 + 0.01 * (call * number % 7 + (rate > 10) * call % 3)) for call in range(10)],
            )
        )  # fmt: skip
    return EngineLatency(
        engine=engine, backend="tensorrt", gpu="a10", dtype="float16", accuracy_level=None, lm_head_bits=16,
        first_call_ms=4321.0, compiled_before=False, shapes=shapes,
    )  # fmt: skip


def _divergence(directory: Path) -> None:
    def text(name: str, kl: float) -> TextDivergence:
        return TextDivergence(
            text=name, rows=16, tokens=8192, kl=Estimate(mean=kl, standard_error=0.003), kl_median=0.01, kl_p99=0.9, kl_max=4.2,
            top1_agreement=Estimate(mean=0.862, standard_error=0.004), perplexity_reference=8.21, perplexity=8.64,
            loss_increase=Estimate(mean=0.05, standard_error=0.002), tokens_sha256="0",
        )  # fmt: skip

    result = DivergenceResult(
        qtk_version="0", model="run/quantized", reference="run/merged", options=DivergenceOptions(),
        texts=(text("python-stdlib-heldout", 0.0812), text("python-docs-english", 0.0934)), pooled=text("all", 0.0873),
        seconds=1, machine={},
    )  # fmt: skip
    measure_into(directory, "divergence", _Nothing(), {}, lambda: result)


def _accuracy(directory: Path, engine: Path, lost: int) -> None:
    scores: list[Score] = []
    for number, language in enumerate(_LANGUAGES):
        right = 130 - 6 * number
        verdicts = {f"{language}/{i}": ["passed" if _passes(i, right, lost, number) else "failed"] for i in range(164)}
        scores.append(score_programs(TaskSource("humaneval-x", language, "x", "0", 164), verdicts, [1]))
    for name in ("mbpp", HOSTILE[:25]):
        verdicts = {f"{name}/{i}": ["passed" if _passes(i, 70, lost, 1) else "failed"] for i in range(100)}
        scores.append(score_programs(TaskSource(name, "python", "x", "0", 500), verdicts, [1]))
    for language in ("go", "python"):
        likelihoods = {
            f"{language}/{i}": TaskLikelihood(log_likelihood=-9.0 - i % 3 - 0.1 * lost * (i % 2), tokens=8)
            for i in range(60)
        }
        scores.append(score_likelihood(TaskSource("likelihood", language, "x", "0"), likelihoods))
    questions = {f"wic/{i}": ChoiceAnswer(gold=0, generation=int(i % 9 < lost % 4), perplexity=1) for i in range(90)}
    scores.append(score_choices(TaskSource("nlp", "wic", "x", "0"), "WiC", "questions", questions, 0))
    result = AccuracyResult(
        qtk_version="0", model=engine.name, answers=None, rules="qtk", chat_format="none", decoding={}, sandbox={"level": "landlock"},
        scores=scores, skipped={f"humaneval-x swift {HOSTILE}": "swift is not installed"}, seconds=1.0, machine={},
    )  # fmt: skip
    measure_into(directory, "accuracy", _Nothing(), {"engine": engine}, lambda: result)


def _passes(task: int, right: int, lost: int, number: int) -> bool:
    if lost and task % 23 == number:
        return False
    return task < right or (bool(lost) and task % 41 == 40)
