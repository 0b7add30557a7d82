"""Results that were written before a result had one list of scores: they are read, compared and ranked as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qtk.bench.accuracy.kinds import KINDS
from qtk.bench.accuracy.results.comparison import compare, read_comparison
from qtk.bench.accuracy.results.result import AccuracyResult, read_result
from qtk.bench.accuracy.results.score import CompareOptions
from qtk.bench.results import write_result

FOUR_LISTS = Path(__file__).parents[1] / "stored" / "four_lists"
OLD_LISTS = {"programs": "languages", "likelihood": "likelihood", "choices": "choices", "lm-eval": "lm_eval"}
NEW_NAMES = {"language": "name", "task": "name", "documents": "tasks"}


@pytest.mark.parametrize("kind", OLD_LISTS)
def test_a_result_with_four_lists_is_read(kind):
    stored = json.loads((FOUR_LISTS / f"{kind}-before.json").read_text())
    result = read_result(FOUR_LISTS / f"{kind}-before.json")
    [score] = result.scores
    assert type(score) is KINDS[kind].score
    assert result.chat_format == "model"
    assert result.decoding["chat_format"] == "model"
    old_list = {"programs": "scores", "lm-eval": "lm_eval"}.get(kind, kind)
    [old] = stored[old_list]
    assert list(score.tasks) == list(old["tasks"])
    assert (score.suite, score.file_sha256) == (old["suite"], old["file_sha256"])
    assert AccuracyResult.model_validate_json(result.model_dump_json()) == result


@pytest.mark.parametrize("kind", OLD_LISTS)
def test_two_of_them_compare_as_they_did(kind, tmp_path):
    before, after = (read_result(FOUR_LISTS / f"{kind}-{side}.json") for side in ("before", "after"))
    comparison = compare(before, after, CompareOptions())
    stored = json.loads((FOUR_LISTS / f"{kind}-comparison.json").read_text())
    rows = [
        {NEW_NAMES.get(key, key): value for key, value in row.items() if key != "language" or "set" not in row}
        for row in stored[OLD_LISTS[kind]]
    ]
    assert len(comparison.rows) == len(rows) > 0
    for new, old in zip(comparison.rows, rows, strict=True):
        figures = new.model_dump(mode="json", exclude={"verdict"})
        assert {key: value for key, value in figures.items() if key in old} | {"verdict": old["verdict"]} == old
        assert new.verdict in (None, "too few tasks to tell", "beyond tolerance")
    assert comparison.differences == stored["differences"]
    write_result(comparison, tmp_path / "comparison.json")
    assert read_comparison(tmp_path) == comparison


def test_the_rows_at_once_of_a_sampled_run_make_no_difference():
    stored = json.loads((FOUR_LISTS / "programs-before.json").read_text())
    stored["decoding"] |= {"temperature": 0.2, "batch_size": 8}
    assert "batch_size" not in AccuracyResult.model_validate(stored).decoding
