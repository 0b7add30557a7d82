"""A failed check exits 3, whether or not anybody reads what it prints."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import qtk
from qtk.bench.accuracy.results.programs import score_programs
from qtk.bench.accuracy.results.result import AccuracyResult
from qtk.bench.accuracy.results.score import TaskSource
from qtk.checkpoint.manifest import ManifestRecorder


def unread(*words: object) -> subprocess.CompletedProcess[str]:
    """Runs a command whose stdout is a pipe without a reader, so that whatever it writes fails."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "qtk", *map(str, words)]
        return subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writing)


def scores(path: Path, passed: int) -> Path:
    tasks = {f"T/{n}": ["passed" if n < passed else "failed"] for n in range(40)}
    result = AccuracyResult(
        qtk_version="0", model="m", answers=None, rules="qtk", chat_format=None, decoding={}, sandbox={},
        scores=[score_programs(TaskSource("own", "python", "x", "0"), tasks, [1])], seconds=0.0, machine={},
    )  # fmt: skip
    path.write_text(result.model_dump_json())
    return path


def changed(directory: Path) -> Path:
    """A directory that no longer matches its manifest."""
    directory.mkdir()
    (directory / "file").write_text("as written")
    ManifestRecorder("merge", {}).write(directory, directory, 0)
    (directory / "file").write_text("changed since")
    return directory


def test_verify_and_plan_and_compare_fail_unread(tiny, tmp_path) -> None:
    bad = changed(tmp_path / "bad")
    before, after = scores(tmp_path / "before.json", 40), scores(tmp_path / "after.json", 0)
    huge = tmp_path / "huge"
    huge.mkdir()
    config = json.loads((tiny() / "config.json").read_text()) | {"vocab_size": 10**8}
    (huge / "config.json").write_text(json.dumps(config))
    for words, sentence in (
        (("verify", bad), "does not match its manifests"),
        (("verify", bad, "--json"), "does not match its manifests"),
        (("plan", huge, "--gpu", "a10", "--json"), "cannot become this engine"),
        (("bench", "compare", before, after, "--gate"), "more than is tolerated"),
        (("bench", "compare", before, after, "--gate", "--json"), "more than is tolerated"),
    ):
        done = unread(*words)
        assert (done.returncode, sentence in done.stderr) == (3, True), (words, done.stderr)
        assert "Exception ignored" not in done.stderr
        assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize(("place", "code"), [(">&-", 3), ("> /dev/full", 4)])
def test_stdout_that_cannot_be_written_is_no_success(tmp_path, place: str, code: int) -> None:
    bad = changed(tmp_path / "bad")
    command = f'exec "{sys.executable}" -m qtk verify "{bad}" {place}'
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True)
    assert done.returncode == code, done.stderr
    assert "Exception ignored" not in done.stderr


def test_what_passes_is_quiet_unread(tmp_path) -> None:
    before = scores(tmp_path / "before.json", 40)
    for words in (("bench", "compare", before, before), ("bench", "compare", before, before, "--json")):
        done = unread(*words)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", sorted((Path(qtk.__file__).parent / "cli").glob("*.py")), ids=lambda path: path.stem)
def test_no_command_prints_first_and_fails_after(path: Path) -> None:
    """A command gives its failed check to `emit`: one that it raised after printing would be lost with the reader."""
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(function, ast.FunctionDef) and function.name != "emit":
            printed = [
                n.lineno for n in ast.walk(function) if isinstance(n, ast.Call) and ast.unparse(n.func) == "emit"
            ]
            raised = [node.lineno for node in ast.walk(function) if isinstance(node, ast.Raise)]
            assert not printed or max(raised, default=0) < min(printed), f"{path.name}: {function.name}"
