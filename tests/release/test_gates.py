"""Gates: every metric on made-up evidence, the verdicts, the files that CI reads, and the command on a real chain."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from pydantic import ValidationError

from qtk.bench.accuracy.results.programs import score_programs
from qtk.bench.accuracy.results.result import AccuracyResult
from qtk.bench.accuracy.results.score import TaskSource
from qtk.bench.latency_result import EngineLatency, LatencyReport, Quantiles, ShapeLatency, SpeedRatio
from qtk.checkpoint.manifest import verify_chain
from qtk.errors import InputError
from qtk.recipes.reading import find_recipe, read_recipe
from qtk.release.gate_baselines import read_baseline
from qtk.release.gate_files import junit, summary
from qtk.release.gates import METRICS, Evidence, Gate, GateBaseline, GateReport, judge


def accuracy(passed: int, tasks: int = 164, level: str = "namespaces") -> AccuracyResult:
    verdicts = {f"T/{n}": ["passed" if n < passed else "failed"] for n in range(tasks)}
    return AccuracyResult(
        qtk_version="0", model="engine", answers=None, rules="qtk", chat_format=None, decoding={},
        sandbox={"level": level}, scores=[score_programs(TaskSource("own", "python", "x", "0"), verdicts, [1])],
        seconds=1.0, machine={},
    )  # fmt: skip


def estimate(mean: float, error: float) -> SimpleNamespace:
    return SimpleNamespace(mean=mean, standard_error=error)


def text(name: str, kl: float) -> SimpleNamespace:
    return SimpleNamespace(
        text=name,
        kl=estimate(kl, 0.002),
        perplexity=10.2,
        perplexity_reference=10.0,
        loss_increase=estimate(0.02, 0.001),
        top1_agreement=estimate(0.86, 0.004),
    )


def quantiles(milliseconds: float) -> Quantiles:
    return Quantiles(mean=milliseconds, p50=milliseconds, p90=1.5 * milliseconds, p99=2 * milliseconds)


SHAPE = ShapeLatency(
    input_len=64, output_len=32, batch_size=1, runs=5, tokens_per_s=21.5, standard_error=0.2, decode_tokens_per_s=24.0,
    ttft_ms=quantiles(200), inter_token_ms=quantiles(40), call_seconds=[1.5] * 5,
)  # fmt: skip
ENGINE = EngineLatency(
    engine="engine", backend="tensorrt", gpu="a10", dtype="float16", accuracy_level=None, lm_head_bits=16,
    first_call_ms=900.0, shapes=[SHAPE],
)  # fmt: skip
RATIO = SpeedRatio(shape="64/32", engine="engine", baseline="engine-float", ratio=2.4, standard_error=0.05, pairs=5)


def evidence(**changed: Any) -> Evidence:
    memory = SimpleNamespace(gpu="NVIDIA A10", needed_bytes=18_400_000_000, decode_bound_tokens_per_s=34.0)
    parts: dict[str, Any] = {
        "accuracies": [("accuracy-float", accuracy(130)), ("accuracy", accuracy(130))],
        "accuracy_pairs": [(accuracy(130), accuracy(130))],
        "divergences": [SimpleNamespace(model="int4", pooled=text("all", 0.08), texts=[text("code", 0.05)])],
        "latencies": [ENGINE],
        "ratios": [RATIO],
        "engines": [("engine", SimpleNamespace(memory=memory))],
        "sizes": [("int4", 18_000_000_000), ("engine", 17_400_000_000)],
    }
    return Evidence(**{**parts, **changed})


def verdicts(gate: dict[str, Any], **changed: Any) -> list[str]:
    return [result.verdict for result in judge("run", [Gate(**gate)], evidence(**changed)).results]


@pytest.mark.parametrize(
    ("gate", "passes"),
    [
        ({"metric": "accuracy-drop", "at_most": 2}, True),
        ({"metric": "accuracy-drop", "suite": "own", "language": "python", "at_most": 2}, True),
        ({"metric": "pass-rate", "at_least": 79}, True),
        ({"metric": "pass-rate", "at_least": 80}, False),
        ({"metric": "kl", "at_most": 0.1}, True),
        ({"metric": "kl", "at_most": 0.06}, False),
        ({"metric": "kl", "text": "code", "at_most": 0.06}, True),
        ({"metric": "top1-agreement", "at_least": 85}, True),
        ({"metric": "perplexity", "at_most": 10}, False),
        ({"metric": "perplexity-increase", "at_most": 2.5}, True),
        ({"metric": "tokens-per-s", "shape": "64/32", "at_least": 21}, True),
        ({"metric": "tokens-per-s", "at_least": 22}, False),
        ({"metric": "speedup", "at_least": 2}, True),
        ({"metric": "share-of-bound", "at_least": 0.7}, True),
        ({"metric": "share-of-bound", "at_least": 0.8}, False),
        ({"metric": "ttft-p90", "at_most": 300}, True),
        ({"metric": "inter-token-p90", "at_most": 50}, False),
        ({"metric": "ttft-p50", "at_most": 200}, True),
        ({"metric": "ttft-p99", "at_most": 300}, False),
        ({"metric": "inter-token-p50", "at_most": 50}, True),
        ({"metric": "inter-token-p99", "at_most": 50}, False),
        ({"metric": "memory", "at_most": 22}, True),
        ({"metric": "size", "at_most": 17}, False),
        ({"metric": "sandbox", "level": "bubblewrap"}, True),
    ],
)
def test_each_metric_is_held_against_its_limit(gate: dict[str, Any], passes: bool) -> None:
    assert set(verdicts(gate)) == {"passed" if passes else "failed"}


@pytest.mark.parametrize(
    "gate",
    [
        {"metric": "accuracy-drop", "suite": "another", "at_most": 2},
        {"metric": "likelihood-drop", "at_most": 0.1},
        {"metric": "kl", "text": "english", "at_most": 1},
        {"metric": "tokens-per-s", "shape": "16/8", "at_least": 0},
    ],
)
def test_what_was_not_measured_does_not_pass(gate: dict[str, Any]) -> None:
    report = judge("run", [Gate(**gate)], evidence())
    assert [result.verdict for result in report.results] == ["not measured"]
    assert not report.passed


def test_without_evidence_nothing_passes() -> None:
    empty = Evidence([], [], [], [], [], [], [])
    limits: dict[str, Any] = {"at_most": 1e9, "at_least": 0, "level": "rlimits"}
    gates = [Gate(metric=name, **{metric.limits[0]: limits[metric.limits[0]]}) for name, metric in METRICS.items()]
    assert {result.verdict for result in judge("run", gates, empty).results} == {"not measured"}
    assert not judge("run", [], evidence()).passed


def test_too_little_evidence_and_doubt_do_not_pass() -> None:
    few = [(accuracy(2, 3), accuracy(2, 3))]
    assert verdicts({"metric": "accuracy-drop", "at_most": 2}, accuracy_pairs=few) == ["too little evidence"]
    lost = [(accuracy(150), accuracy(90))]
    assert verdicts({"metric": "accuracy-drop", "at_most": 2}, accuracy_pairs=lost) == ["failed"]
    doubtful = RATIO.model_copy(update={"in_doubt": "engine is noisy"})
    assert verdicts({"metric": "speedup", "at_least": 2}, ratios=[doubtful]) == ["too little evidence"]
    weak = [("accuracy", accuracy(130, level="landlock"))]
    assert verdicts({"metric": "sandbox", "level": "bubblewrap"}, accuracies=weak) == ["failed"]


@pytest.mark.parametrize(
    ("gate", "complaint"),
    [
        ({"metric": "tokens_per_sec", "at_least": 1}, "did you mean tokens-per-s"),
        ({"metric": "kl"}, "needs a limit: at_most"),
        ({"metric": "kl", "at_least": 1}, "does not take at_least"),
        ({"metric": "kl", "at_most": 1, "shape": "16/8"}, "does not take shape; it takes at_most, text"),
        ({"metric": "speedup", "at_least": 1, "baseline": "b"}, "takes no baseline; these do: pass-rate, kl"),
        ({"metric": "sandbox", "level": "docker"}, "no sandbox level 'docker'"),
    ],
)
def test_a_gate_that_makes_no_sense_is_refused(gate: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Gate(**gate)


def test_close_to_the_limit_is_said() -> None:
    [result] = judge("run", [Gate(metric="kl", at_most=0.082)], evidence()).results
    assert (result.verdict, result.uncertain) == ("passed", True)


@pytest.fixture
def mixed() -> GateReport:
    gates = [
        Gate(metric="kl", at_most=0.1),
        Gate(metric="size", at_most=1),
        Gate(metric="kl", text="a | b & <c>", at_most=1),
    ]
    return judge("my run", gates, evidence())


def test_ci_reads_junit_and_markdown(mixed: GateReport) -> None:
    suite = ElementTree.fromstring(junit(mixed))
    assert {key: suite.get(key) for key in ("tests", "failures", "errors")} == {
        "tests": "3",
        "failures": "1",
        "errors": "1",
    }
    assert [[child.tag for child in case] for case in suite] == [[], ["failure"], ["error"]]
    lines = summary(mixed).splitlines()
    assert lines[0] == "## my run: do not ship"
    assert [line.count("|") - line.count("\\|") for line in lines[2:]] == [6] * 5


def test_the_model_case_has_the_published_gates() -> None:
    gates = read_recipe(find_recipe("codefuse-deepseek-33b-a10").path).gates
    assert {gate.at_least for gate in gates if gate.metric == "pass-rate"} == {78.05, 68.29, 62.19, 64.63, 55.49}
    assert [gate.at_least for gate in gates if gate.metric == "tokens-per-s"] == [21.7, 21.5, 21.1, 20.5]


# Against a baseline.


def published(tmp_path: Path, content: dict[str, Any]) -> GateBaseline:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(content))
    return read_baseline("base.yaml", tmp_path, lambda place: []).baseline


FIGURES = {
    "gpu": "a10",
    "figures": {
        "tokens-per-s": {"64/32": 21.0},
        "ttft-p90": {"64/32": 290},
        "inter-token-p90": {"64/32": 50},
        "memory": {"": 20},
        "size": {"": 17},
        "kl": {"int4, all": 0.1, "int4, code": 0.05},
        "pass-rate": {"own python": 80},
    },
}


@pytest.mark.parametrize(
    ("gate", "passes"),
    [
        ({"metric": "tokens-per-s", "at_least": 1}, True),
        ({"metric": "tokens-per-s", "at_least": 1.1}, False),
        ({"metric": "ttft-p90", "at_most": 1.1}, True),
        ({"metric": "ttft-p90", "at_most": 1}, False),
        ({"metric": "inter-token-p90", "shape": "64/32", "at_most": 1.3}, True),
        ({"metric": "memory", "at_most": 0.95}, True),
        ({"metric": "size", "at_most": 1}, False),
        ({"metric": "kl", "at_most": 1}, True),
        ({"metric": "kl", "text": "code", "at_most": 0.9}, False),
        ({"metric": "pass-rate", "suite": "own", "at_least": 0.99}, True),
    ],
)
def test_a_limit_may_be_a_fraction_of_a_baseline(tmp_path, gate: dict[str, Any], passes: bool) -> None:
    report = judge("run", [Gate(**gate, baseline="b")], evidence(), {"b": published(tmp_path, FIGURES)})
    assert [result.verdict for result in report.results] == ["passed" if passes else "failed"]


def test_the_limit_is_told_with_the_baseline_s_figure(tmp_path) -> None:
    gate = Gate(metric="tokens-per-s", at_least=0.95, baseline="b")
    [result] = judge("run", [gate], evidence(), {"b": published(tmp_path, FIGURES)}).results
    assert result.limit == "at least 19.95 (0.95 of 21 in b)"


@pytest.mark.parametrize(
    ("figures", "gate", "why"),
    [
        ({"16/8": 20.0, "64/32": 20.0}, {}, "the baseline has it; this run did not measure it"),
        ({"16/8": 20.0}, {"shape": "64/32"}, "the baseline b has no figure for it"),
        ({}, {}, "the baseline b has no figure for it"),
    ],
)
def test_what_only_one_of_the_two_measured_does_not_pass(
    tmp_path, figures: dict[str, float], gate: Any, why: str
) -> None:
    base = published(tmp_path, {"figures": {"tokens-per-s": figures}})
    judged = judge(
        "run",
        [Gate(metric="tokens-per-s", at_least=0.5, baseline="base.yaml", **gate)],
        evidence(),
        {"base.yaml": base},
    )
    assert not judged.passed
    assert [why.replace(" b ", " base.yaml ") in result.why for result in judged.failures] == [True]
    nothing = judge(
        "run", [Gate(metric="size", at_most=1, baseline="b")], evidence(sizes=[]), {"b": published(tmp_path, {})}
    )
    assert [result.verdict for result in nothing.results] == ["not measured"]


def test_times_of_another_gpu_do_not_compare(tmp_path) -> None:
    base = published(tmp_path, {**FIGURES, "gpu": "l4"})
    gates = [Gate(metric="tokens-per-s", at_least=0.5, baseline="b"), Gate(metric="size", at_most=2, baseline="b")]
    results = judge("run", gates, evidence(), {"b": base}).results
    assert [result.verdict for result in results] == ["too little evidence", "passed"]
    assert "measured on l4, this run on a10" in results[0].why


def test_an_earlier_verdict_is_a_baseline(tmp_path) -> None:
    """Its standard error counts too: two figures that are both uncertain are close to each other's limit."""
    earlier = judge("run", [Gate(metric="tokens-per-s", at_least=1), Gate(metric="size", at_most=1)], evidence())
    (tmp_path / "result.json").write_text(earlier.model_dump_json())
    base = read_baseline("result.json", tmp_path, lambda place: []).baseline
    gates = [Gate(metric="tokens-per-s", at_least=1, baseline="b"), Gate(metric="size", at_most=0.99, baseline="b")]
    results = judge("run", gates, evidence(), {"b": base}).results
    assert [(result.verdict, result.uncertain) for result in results] == [("passed", True), ("failed", False)]


def test_the_published_table_is_a_baseline(tmp_path) -> None:
    found = read_baseline("codefuse-deepseek-33b-int4", tmp_path, lambda place: [])
    speed = found.baseline.figures(Gate(metric="tokens-per-s", at_least=1, baseline="b"))
    rates = found.baseline.figures(Gate(metric="pass-rate", language="go", at_least=1, baseline="b"))
    assert ({key: it.value for key, it in speed.items()}, found.baseline.gpu) == (
        {"16/8": 21.7, "64/32": 21.5, "256/128": 21.1, "1024/512": 20.5}, "a10",
    )  # fmt: skip
    assert {key: it.value for key, it in rates.items()} == {"humaneval-x go": 55.49}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("absent.yaml", None, "does not exist"),
        ("x.json", "{}", "is not the result.json of `qtk gate`"),
        ("x.yaml", "figures: {speed: {a: 1}}", "speed: not a metric that is held against a baseline"),
        ("x.yaml", "figures: {kl: {a: fast}}", "figures.kl.a: "),
        ("x.yaml", "[1", "is not valid YAML"),
    ],
)
def test_what_is_not_a_baseline_is_refused(tmp_path, name: str, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        read_baseline(name, tmp_path, lambda place: [])
    assert said in str(caught.value)


RECIPE: dict[str, Any] = {
    "name": "gated",
    "quantize": {"group_size": 32, "method": "rtn"},
    "build": {"max_input_len": 32, "max_output_len": 8, "max_batch_size": 1},
    "bench": {"latency": {"shapes": "8/2", "warmups": 0, "runs": 2, "seconds": 0}},
}


def test_a_run_ends_with_its_gates(tiny, tmp_path, run_qtk, monkeypatch) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    gates = [{"metric": "size", "at_most": 1}, {"metric": "tokens-per-s", "at_least": 1e-9}]
    recipe.write_text(yaml.safe_dump({**RECIPE, "model": str(tiny()), "gates": gates}))
    done = run_qtk("run", recipe, "-o", run, "--json")
    assert done.returncode == 0, done.stderr
    assert [result["verdict"] for result in json.loads(done.stdout)["gate"]["results"]] == ["passed", "passed"]
    assert sorted(path.name for path in (run / "gate").iterdir()) == [
        "junit.xml", "qtk-manifest.json", "result.json", "summary.md",
    ]  # fmt: skip
    assert "ship" in page.read_text()
    assert not [finding for finding in verify_chain(run / "gate") if finding.bad]

    strict = tmp_path / "strict.yaml"
    strict.write_text(yaml.safe_dump({"gates": [*gates, {"metric": "kl", "at_most": 1}]}))
    judged = run_qtk("gate", run, "--gates", strict, "-o", tmp_path / "verdict")
    assert judged.returncode == 3
    assert "kl: not measured, at most 1: not measured" in judged.stderr
    assert (tmp_path / "verdict" / "result.json").is_file()
    again = run_qtk("gate", run, "--gates", strict, "-o", tmp_path / "verdict")
    assert again.returncode == 2, "a directory that is named is not replaced unasked"

    result = run / "latency" / "result.json"
    report = LatencyReport.model_validate_json(result.read_bytes())
    result.write_text(report.model_dump_json())  # the same figures, but not the bytes that the manifest names
    edited = run_qtk("gate", run)
    assert (edited.returncode, "The chain does not verify" in edited.stderr) == (3, True)
    assert "changed: " in edited.stderr
    assert run_qtk("run", recipe, "-o", run, "--resume").returncode == 0  # what was changed is made again


def test_a_run_is_held_against_an_earlier_one(tiny, tmp_path, run_qtk) -> None:
    recipe, first, second = tmp_path / "recipe.yaml", tmp_path / "first", tmp_path / "second"
    content = {**RECIPE, "model": str(tiny()), "build": {**RECIPE["build"], "float_engine": False}}
    recipe.write_text(yaml.safe_dump(content))
    assert run_qtk("run", recipe, "-o", first).returncode == 0
    gates = [
        {"metric": "size", "at_most": 1, "baseline": "first"},
        {"metric": "size", "at_most": 0.5, "baseline": "./first"},
        {"metric": "tokens-per-s", "at_least": 1e-9, "baseline": "first"},
    ]
    recipe.write_text(yaml.safe_dump({**content, "gates": gates}))
    done = run_qtk("run", recipe, "-o", second, "--json")
    assert done.returncode == 3, done.stderr
    assert [result["verdict"] for result in json.loads(done.stdout)["gate"]["results"]] == [
        "passed",
        "failed",
        "passed",
    ]
    again = run_qtk("gate", second)  # the run's copy of the recipe finds the baseline too
    assert (again.returncode, "0.5 of" in again.stderr) == (3, True)
    assert not [finding for finding in verify_chain(second / "gate") if finding.bad]
    (first / "latency" / "result.json").write_text("{}")
    edited = run_qtk("gate", second, "--overwrite")
    assert (edited.returncode, "The baseline" in edited.stderr) == (3, True)

    gates[0]["baseline"] = "nowhere"
    recipe.write_text(yaml.safe_dump({**content, "gates": gates}))
    refused = run_qtk("run", recipe, "-o", tmp_path / "third")
    assert (refused.returncode, "nowhere of a gate does not exist" in refused.stderr) == (2, True)
    assert not (tmp_path / "third").exists()


def test_a_folder_is_judged_again(tiny, tmp_path, run_qtk) -> None:
    """The verdict of before, which lies in the folder, is not among what is judged."""
    assert run_qtk("quantize", tiny(), "-o", tmp_path / "int4", "--method", "rtn").returncode == 0
    gates = tmp_path / "gates.yaml"
    gates.write_text("gates:\n  - {metric: size, at_most: 1}\n")
    words = ("gate", tmp_path, "--gates", gates)
    assert run_qtk(*words).returncode == 0
    assert run_qtk(*words).returncode == 0, "the verdict of before is replaced"
    assert run_qtk(*words, "-o", tmp_path / "gate").returncode == 2, "what is named is not, unless --overwrite says so"
    assert run_qtk(*words, "-o", tmp_path / "gate", "--overwrite").returncode == 0


def test_gates_have_to_come_from_somewhere(tiny, tmp_path, run_qtk) -> None:
    assert "--gates FILE" in run_qtk("gate", tiny()).stderr
    empty = tmp_path / "gates.yaml"
    empty.write_text("gates: []\n")
    refused = run_qtk("gate", tiny(), "--gates", empty)
    assert (refused.returncode, "nothing could fail" in refused.stderr) == (2, True)
    typo = tmp_path / "typo.yaml"
    typo.write_text("gates:\n  - {metric: kll, at_most: 1}\n")
    refused = run_qtk("gate", tiny(), "--gates", typo)
    assert (refused.returncode, "did you mean kl" in refused.stderr) == (2, True)
