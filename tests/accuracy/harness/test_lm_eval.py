"""Tasks of lm-evaluation-harness on an engine: the answers of its own transformers model, and the command line."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from qtk.bench.accuracy.accuracy_run import Output, run_accuracy
from qtk.bench.accuracy.answer_source import AskedModel
from qtk.bench.accuracy.harness.evaluation import harness_scores
from qtk.bench.accuracy.model_source import ModelSource
from qtk.bench.accuracy.options import AccuracyOptions, ModelOptions
from qtk.bench.accuracy.results.harness import HarnessMetric, HarnessScore
from qtk.bench.accuracy.results.score import CompareOptions
from qtk.engines.build import build_engine
from qtk.engines.options import BuildOptions
from qtk.engines.sessions.session import DecoderSession
from qtk.errors import InputError

# Not importorskip: the import takes seconds, in every worker that only collects these tests.
pytestmark = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed")
ROWS = [
    {"question": f"What is {n} + {n}?", "options": [str(2 * n), f"{n} or more", "none"], "answer": n % 3}
    for n in range(7)
]
CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
num_fewshot: 0
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_choice: "{{{{options}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
metadata: {{version: 1.0}}
"""
ROLLING = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}} and a text that is far longer than the engine holds, {{{{options * 9}}}}"
metric_list:
  - metric: word_perplexity
"""
GENERATE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_target: "{{{{options[answer]}}}}"
generation_kwargs: {{until: ["e", "\\n\\n"], max_gen_toks: 12, do_sample: false}}
metric_list:
  - metric: exact_match
"""


@pytest.fixture(scope="module")
def engine(tiny, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("engine") / "engine"
    build_engine(
        tiny("llama"), out, BuildOptions(accuracy_level=0, max_input_len=112, max_output_len=16, max_batch_size=4)
    )
    return out


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> dict[str, Path]:
    """One task file of each kind of request."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    made = {}
    for name, text in (("own_choice", CHOICE), ("own_rolling", ROLLING), ("own_generate", GENERATE)):
        made[name] = folder / f"{name}.yaml"
        made[name].write_text(text.format(name=name, data=folder / "rows.jsonl"))
    return made


@pytest.mark.parametrize("kind", ["own_choice", "own_rolling", "own_generate"])
def test_an_engine_answers_as_the_harness_own_transformers_model(engine, tasks, tiny, kind, tmp_path):
    """Every response of every request, and the scores: choices, texts longer than the engine, generations with stops."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = AskedModel(DecoderSession.open(engine, 1), ModelOptions())
    theirs = HFLM(pretrained=str(tiny("llama")), dtype="float32", device="cpu", max_length=128, batch_size=2)
    expected = simple_evaluate(
        model=theirs, tasks=[str(tasks[kind])], bootstrap_iters=10, task_manager=TaskManager(include_defaults=False)
    )
    [score] = harness_scores(model, str(tasks[kind]), tmp_path, limit=None, hub=False)
    documents = [json.loads(line) for line in (tmp_path / "lm-eval-documents.jsonl").read_text().splitlines()]
    samples = {sample["doc_id"]: sample for sample in expected["samples"][kind]}
    assert len(documents) == len(samples) == len(ROWS)
    for document in documents:
        ours, reference = document["resps"], samples[document["doc_id"]]["resps"]
        if kind == "own_generate":
            assert ours == reference
        elif kind == "own_choice":
            for (mine,), (other,) in zip(ours, reference, strict=True):
                assert mine[0] == pytest.approx(other[0], abs=1e-3)
                assert mine[1] == other[1]
        else:
            assert ours[0][0] == pytest.approx(reference[0][0], rel=1e-5)
    for metric in score.metrics:
        value = expected["results"][kind][f"{metric.name},{metric.filter}"]
        assert metric.value == pytest.approx(value, rel=1e-4)
    assert {metric.name for metric in score.metrics} >= {
        {"own_choice": "acc_norm", "own_rolling": "word_perplexity", "own_generate": "exact_match"}[kind]
    }


def test_a_finished_task_is_not_run_again(engine, tasks, tmp_path):
    model = AskedModel(DecoderSession.open(engine, 1), ModelOptions())
    name = str(tasks["own_generate"])
    [score] = harness_scores(model, name, tmp_path, limit=3, hub=False)
    assert len(score.tasks) == 3
    size = (tmp_path / "lm-eval-documents.jsonl").stat().st_size
    assert harness_scores(model, name, tmp_path, limit=3, hub=False) == [score]
    assert (tmp_path / "lm-eval-documents.jsonl").stat().st_size == size


def test_what_cannot_be_loaded_is_said(engine, tasks, tmp_path):
    model = AskedModel(DecoderSession.open(engine, 1), ModelOptions())
    with pytest.raises(InputError, match="no such file"):
        run_accuracy(
            AccuracyOptions(suite=("lm-eval:absent.yaml",)),
            ModelSource(engine, ModelOptions(), "qtk"),
            Output(tmp_path / "out"),
        )
    assert list(tmp_path.iterdir()) == []  # nothing was finished, so nothing is kept
    broken = tmp_path / "broken.yaml"
    broken.write_text(CHOICE.format(name="broken", data=tmp_path / "absent.jsonl"))
    with pytest.raises(InputError, match=r"cannot be loaded.*--hub"):
        harness_scores(model, str(broken), tmp_path, limit=None, hub=False)


def test_metrics_are_compared_document_by_document():
    def score(right: list[float], loss: list[float]) -> HarnessScore:
        metrics = [
            HarnessMetric(
                name=name, filter="none", value=sum(values) / len(values), standard_error=None,
                higher_is_better=name == "acc", documents={str(n): value for n, value in enumerate(values)},
            )
            for name, values in (("acc", right), ("loss", loss))
        ]  # fmt: skip
        documents = {str(n): "0" for n in range(len(right))}
        return HarnessScore(name="t", version="1", examples=0, file_sha256="0", cut=0, metrics=metrics, tasks=documents)

    before, after = score([1, 1, 1, 0], [2.0, 3.0, 4.0, 5.0]), score([0, 0, 1, 1], [2.5, 3.5, 4.4, 5.6])
    accuracy, loss = before.compare(after, CompareOptions())
    assert (accuracy.lost, accuracy.gained, accuracy.p_value) == (["0", "1"], ["3"], 1.0)
    assert accuracy.difference == pytest.approx(-0.25)
    assert accuracy.verdict == "too few tasks to tell"
    assert loss.lost == ["0", "1", "2", "3"]  # more of a loss is worse
    assert loss.verdict is None
    assert loss.p_value == pytest.approx(0.0, abs=1e-6)


def test_a_task_is_scored_and_compared_from_the_command_line(engine, tasks, tmp_path, run_qtk):
    words = ("bench", "accuracy", engine, "--suite", f"lm-eval:{tasks['own_choice']}", "--chat-format", "model")
    done = run_qtk(*words, "--limit", 4, "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    [score] = json.loads(done.stdout)["scores"]
    assert [metric["name"] for metric in score["metrics"]] == ["acc", "acc_norm"]
    assert len(score["metrics"][0]["documents"]) == 4
    compared = run_qtk("bench", "compare", tmp_path / "out", tmp_path / "out")
    assert compared.returncode == 0, compared.stderr
    assert "acc_norm" in compared.stdout
