"""`qtk bench accuracy`: answers from a file or a model, scored suite by suite, into a directory that can be resumed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

import qtk
from qtk.bench.accuracy.answers import Answer, answers_for, read_answers, write_answer, write_line
from qtk.bench.accuracy.compatibility import bigcode_stops
from qtk.bench.accuracy.results import AccuracyResult, LanguageScore, score_language
from qtk.bench.accuracy.sandbox.job import Level, Limits
from qtk.bench.accuracy.sandbox.pool import PROMISES, choose_level, limits_note
from qtk.bench.accuracy.scoring import Scorer
from qtk.bench.accuracy.suites import Suite, parse_suite, suite_tasks
from qtk.bench.accuracy.tasks import Task, read_rows
from qtk.bench.accuracy.toolchains.base import Rules
from qtk.bench.results import RESULT_NAME, write_result
from qtk.checkpoint.manifest import ManifestRecorder, canonical_digest, file_digest, output_files
from qtk.checkpoint.staging import partial_path, staged_directory
from qtk.errors import InputError, MachineError
from qtk.machine import PeakMemory, machine
from qtk.progress import note

TASKS_NAME, ANSWERS_NAME, _IDENTITY_NAME = "tasks.jsonl", "generations.jsonl", "run.json"

# Answers of these tasks of a suite's language, in any order, as they come.
Answerer = Callable[[Suite, str, Sequence[Task], Callable[[Answer], None], set[tuple[str, str, str, int]]], None]


class AccuracyOptions(BaseModel):
    """What `qtk bench accuracy` scores, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: tuple[str, ...] = Field(
        ("humaneval",), min_length=1, description="NAME, NAME:python,java or a YAML file; repeatable."
    )
    data: Path | None = Field(None, description="Folder (or file) of the tasks; default: the variable QTK_DATA.")
    limit: int | None = Field(None, ge=1, description="Only the first N tasks of each language.")
    compat: Literal["none", "codefuse", "bigcode"] = Field(
        "none", description="Extract answers by another harness's rules instead of qtk's own."
    )
    k: tuple[int, ...] = Field((1,), min_length=1, description="pass@k to report; repeatable.")
    sandbox: Literal["auto", "namespaces", "bubblewrap", "user-namespaces", "landlock", "rlimits"] = Field(
        "auto", description="How programs are shut in; auto takes the strongest that works here."
    )
    allow_unsandboxed: bool = Field(False, description="Run programs with limits only where nothing better works.")
    workers: int | None = Field(None, ge=1, description="Programs at once. Default: the usable cores.")

    @property
    def rules(self) -> Rules:
        return "qtk" if self.compat == "none" else self.compat


def run_accuracy(
    options: AccuracyOptions,
    out: Path,
    *,
    answers: Path | None,
    answerer: Answerer | None = None,
    model: Path | None = None,
    about_model: BaseModel | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> AccuracyResult:
    """Scores the answers of a file, or those that `answerer` makes, and writes `out`.

    `out` holds result.json, tasks.jsonl (one verdict a line), generations.jsonl and the manifest. A stopped run leaves
    `out`.partial; with `resume` its finished tasks are not run again. MachineError when no language can be scored.
    """
    start = time.monotonic()
    plan = [
        (suite, language)
        for text in options.suite
        for suite, languages in [parse_suite(text)]
        for language in languages
    ]
    if options.compat == "bigcode":
        for suite, _ in plan:
            bigcode_stops(suite)
    level = choose_level(options.sandbox, options.allow_unsandboxed)
    if level in ("landlock", "rlimits"):
        note(f"qtk: sandbox level {level}: {PROMISES[level]}")
    given = read_answers(answers) if answers is not None else None
    loaded = [(suite, language, *_limited(suite, language, options)) for suite, language in plan]
    recorder = ManifestRecorder("accuracy", options.model_dump(mode="json"))
    for suite, language, _, file in loaded:
        recorder.add_input(f"tasks {suite.name} {language}", file, [file])
    if answers is not None:
        recorder.add_input("answers", answers, [answers])
    if model is not None:
        recorder.add_input("model", model, output_files(model))
    identity = canonical_digest(
        {
            "options": options.model_dump(mode="json", exclude={"workers"}),
            "model": [str(model), about_model.model_dump(mode="json") if about_model else None],
            "tasks": [file_digest(file).sha256 for _, _, _, file in loaded],
            "answers": file_digest(answers).sha256 if answers else None,
        }
    )
    _clear_unless_resumed(out, identity, resume)
    scores, skipped = [], {}
    with PeakMemory() as memory, staged_directory(out, overwrite=overwrite, resumable=True) as directory:
        write_identity(directory, identity)
        for suite, language, tasks, file in loaded:
            job = _Language(suite, language, tasks, directory, options, level)
            try:
                verdicts = job.verdicts(given, answers, answerer)
            except MachineError as error:
                if len(plan) == 1:
                    raise
                skipped[f"{suite.name} {language}"] = str(error)
                note(f"qtk: {suite.name} {language} is skipped. {error}")
                continue
            scores.append(_score(suite, language, file, verdicts, options.k))
        if not scores:
            raise MachineError("No language could be scored:\n" + "\n".join(f"{k}: {v}" for k, v in skipped.items()))
        decoding = about_model.model_dump(mode="json") if about_model else {}
        result = AccuracyResult(
            qtk_version=qtk.__version__,
            model=str(model) if model else None,
            answers=str(answers) if answers else None,
            rules=options.rules,
            prompt_format=decoding.get("prompt"),
            decoding=decoding,
            sandbox={"level": level, "promise": PROMISES[level], "limits": limits_note(Limits())},
            scores=scores,
            skipped=skipped,
            seconds=round(time.monotonic() - start, 2),
            machine=machine().as_dict(),
        )
        write_result(result, directory / RESULT_NAME)
        (directory / _IDENTITY_NAME).unlink()
        recorder.write(directory, out, memory.peak_bytes)
    return result


def _limited(suite: Suite, language: str, options: AccuracyOptions) -> tuple[list[Task], Path]:
    tasks, file = suite_tasks(suite, language, options.data)
    return tasks[: options.limit], file


def _score(
    suite: Suite, language: str, file: Path, verdicts: dict[str, list[str]], ks: tuple[int, ...]
) -> LanguageScore:
    return score_language(suite.name, language, file, file_digest(file).sha256, verdicts, sorted(set(ks)))


def _clear_unless_resumed(out: Path, identity: str, resume: bool) -> None:
    """A partial directory is continued only when it is asked for and belongs to the very same run."""
    partial = partial_path(out)
    if not partial.exists():
        return
    if not resume:
        shutil.rmtree(partial)
        return
    try:
        found = json.loads((partial / _IDENTITY_NAME).read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError):
        found = None
    if found != identity:
        raise InputError(
            f"{partial} was left by a run with other options, tasks or answers. Run it without --resume to start anew."
        )


def write_identity(directory: Path, identity: str) -> None:
    """Notes which run a partial directory belongs to."""
    (directory / _IDENTITY_NAME).write_text(json.dumps({"identity": identity}) + "\n", encoding="utf-8")


class _Language:
    """One language of one suite within a run: what is finished already, and what remains."""

    def __init__(
        self, suite: Suite, language: str, tasks: list[Task], directory: Path, options: AccuracyOptions, level: Level
    ) -> None:
        self.suite, self.language, self.tasks, self.options, self.level = suite, language, tasks, options, level
        self.tasks_file, self.answers_file = directory / TASKS_NAME, directory / ANSWERS_NAME

    def verdicts(
        self, given: dict[tuple[str | None, str], list[str]] | None, path: Path | None, answerer: Answerer | None
    ) -> dict[str, list[str]]:
        """task_id -> verdicts of its samples, running what no earlier run has finished."""
        wanted = {task.task_id for task in self.tasks}
        finished = {
            (row["suite"], row["language"], row["task_id"], row["sample"]): row["verdict"]
            for row in _complete_rows(self.tasks_file)
        }
        options = self.options
        with Scorer(
            self.suite, self.language, level=self.level, rules=options.rules, workers=options.workers
        ) as scorer:
            if given is not None and path is not None:
                answers = answers_for(given, self.suite.name, self.language, self.tasks, path)
            else:
                assert answerer is not None, "a run has answers or a model"
                # Answers cost far more than running them, so a language that cannot be scored is found before.
                scorer.check_references(self.tasks)
                answers = self._generated(answerer)
            remaining = [answer for answer in answers if answer.key not in finished]
            if remaining and given is not None:
                scorer.check_references(self.tasks)
            if remaining:
                with open(self.tasks_file, "a", encoding="utf-8") as stream:
                    for scored in scorer.score(self.tasks, remaining):
                        write_line(stream, scored.record())
                        finished[scored.answer.key] = scored.verdict
        verdicts: dict[str, list[str]] = {}
        for answer in answers:
            if answer.task_id in wanted:
                verdicts.setdefault(answer.task_id, []).append(finished[answer.key])
        return verdicts

    def _generated(self, answerer: Answerer) -> list[Answer]:
        mine = [
            Answer(**row)
            for row in _complete_rows(self.answers_file)
            if (row["suite"], row["language"]) == (self.suite.name, self.language)
        ]
        with open(self.answers_file, "a", encoding="utf-8") as stream:

            def take(answer: Answer) -> None:
                write_answer(stream, answer)
                mine.append(answer)

            answerer(self.suite, self.language, self.tasks, take, {answer.key for answer in mine})
        order = {task.task_id: number for number, task in enumerate(self.tasks)}
        return sorted(mine, key=lambda answer: (order[answer.task_id], answer.sample))


def _complete_rows(path: Path) -> list[dict]:
    """The rows of a file that a killed run may have left with half a line at its end, which is cut off."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) != len(data):
        path.write_bytes(whole)
    return read_rows(path)
