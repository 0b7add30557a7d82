"""Stored answers of sixteen shapes get the verdicts that they have always had; needs no toolchain but Python."""

from __future__ import annotations

from pathlib import Path

from qtk.bench.accuracy.accuracy_run import Output, run_accuracy
from qtk.bench.accuracy.jsonl import read_rows
from qtk.bench.accuracy.options import AccuracyOptions
from qtk.bench.accuracy.programs.answers import AnswerFile

STORED = Path(__file__).parent / "stored" / "answers"
OF_A_RUN = ("seconds", "stdout", "stderr")  # what differs between two runs, and between versions of Python


def test_stored_answers_keep_their_verdicts(tmp_path):
    options = AccuracyOptions(suite=(str(STORED / "own.yaml"),), data=STORED, allow_unsandboxed=True)
    result = run_accuracy(options, AnswerFile(STORED / "generations.jsonl"), Output(tmp_path / "out"))
    lines = [
        {key: value for key, value in row.items() if key not in OF_A_RUN}
        for row in read_rows(tmp_path / "out" / "tasks.jsonl")
    ]
    assert sorted(lines, key=lambda row: (row["task_id"], row["sample"])) == read_rows(STORED / "tasks.jsonl")
    [score] = result.scores
    assert score.rows() == [
        ("own", "python", 2, "pass@1", 71.88, "65.4 to 77.5", "23 passed, 6 failed, 3 compile_error")
    ]
    assert result.sandbox["limits"] == score.limits != ""
