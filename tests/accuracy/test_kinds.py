"""A new kind of score is one file and one line of the registry: accuracy, compare and the report need no other change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.answer_lengths import LENGTHS, LengthScore

from qtk.bench.accuracy.kinds import KINDS, kind_of, measure_of
from qtk.bench.accuracy.options import AccuracyOptions
from qtk.bench.accuracy.results.result import read_result
from qtk.release.report import write_report


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_whole(name):
    kind = KINDS[name]
    assert kind.score.model_fields["kind"].default == kind.compared.model_fields["kind"].default == name
    assert kind.score.columns
    assert kind.compared.columns
    measure = measure_of(name)(AccuracyOptions())
    assert measure.needs <= {"text", "logits", "sandbox"}


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="'colour' is not a kind of score: programs, likelihood"):
        kind_of("colour")


@pytest.fixture
def lengths(tmp_path, monkeypatch) -> Path:
    """A suite of the fifth kind, whose one line is added to the registry for this test, and answers of two sizes."""
    monkeypatch.setitem(KINDS, "lengths", LENGTHS)
    tasks = [
        {"task_id": f"T/{n}", "prompt": "p", "entry_point": "f", "canonical_solution": "s", "test": "t"}
        for n in range(2)
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    suite = tmp_path / "lengths.yaml"
    suite.write_text(
        "name: own\nkind: lengths\nsummary: ours\nsource: ours\nlicence: MIT\nlayout: humaneval\n"
        "languages:\n  python: {file: own.jsonl, tasks: 2}\n"
    )
    for name, texts in (("before", ["four", "sevenly"]), ("after", ["x", "y"])):
        rows = [{"task_id": f"T/{n}", "generation": text} for n, text in enumerate(texts)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return suite


def test_a_fifth_kind_is_measured_compared_and_reported(lengths, tmp_path, run_qtk):
    words = ("bench", "accuracy", "--suite", lengths, "--data", tmp_path)
    for name in ("before", "after"):
        done = run_qtk(*words, "--generations", tmp_path / f"{name}.jsonl", "-o", tmp_path / name)
        assert done.returncode == 0, done.stderr
    assert "Length of the answers" in done.stdout
    assert [type(score) for score in read_result(tmp_path / "before").scores] == [LengthScore]
    assert read_result(tmp_path / "before").sandbox == {}
    compared = run_qtk("bench", "compare", tmp_path / "before", tmp_path / "after", "--gate", "-o", tmp_path / "c")
    assert compared.returncode == 3
    assert "Length of the answers before and after; tolerance 2 characters" in compared.stdout
    assert "own python: -4.50 characters, tolerance 2" in compared.stderr
    text = write_report(
        [tmp_path / name for name in ("after", "before", "c")], tmp_path / "report", title="R"
    ).read_text()
    assert "| measured | suite | language | longest | mean |" in text
    assert "| before | own | python | 7 | 5.500 |" in text
    assert text.count("| python | 5.500 | 1.000 | beyond tolerance |") == 1


def test_a_fifth_kind_refuses_before_anything_is_done(lengths, tmp_path, run_qtk):
    words = ("bench", "accuracy", "--suite", lengths, "--data", tmp_path, "--k", 2)
    done = run_qtk(*words, "--generations", tmp_path / "before.jsonl", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "lengths are measured of one sample" in done.stderr
    assert not (tmp_path / "out.partial").exists()
