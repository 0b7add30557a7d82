"""Gates: every metric on made-up evidence, the verdicts, the files that CI reads, and the command on a real chain."""

from __future__ import annotations

import json
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
from qtk.recipes.reading import find_recipe, read_recipe
from qtk.release.gate_files import junit, summary
from qtk.release.gates import METRICS, Evidence, Gate, GateReport, judge


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
        "divergences": [SimpleNamespace(model="int4", pooled=text("all texts", 0.08), texts=[text("code", 0.05)])],
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

    result = run / "latency" / "result.json"
    report = LatencyReport.model_validate_json(result.read_bytes())
    result.write_text(report.model_dump_json())  # the same figures, but not the bytes that the manifest names
    edited = run_qtk("gate", run, "--overwrite")
    assert (edited.returncode, "The chain does not verify" in edited.stderr) == (3, True)
    assert "changed: " in edited.stderr
    assert run_qtk("run", recipe, "-o", run, "--resume").returncode == 0  # what was changed is made again


def test_a_folder_is_judged_again(tiny, tmp_path, run_qtk) -> None:
    """The verdict of before, which lies in the folder, is not among what is judged."""
    assert run_qtk("quantize", tiny(), "-o", tmp_path / "int4", "--method", "rtn").returncode == 0
    gates = tmp_path / "gates.yaml"
    gates.write_text("gates:\n  - {metric: size, at_most: 1}\n")
    words = ("gate", tmp_path, "--gates", gates)
    assert run_qtk(*words).returncode == 0
    assert run_qtk(*words).returncode == 2
    assert run_qtk(*words, "--overwrite").returncode == 0


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
