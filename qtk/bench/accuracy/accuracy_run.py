"""`qtk bench accuracy`: answers from a file or a model, scored suite by suite, into a directory that can be resumed."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import qtk
from qtk.bench.accuracy.checks import HARNESS, content_digest, require_logits, require_programs, require_sense
from qtk.bench.accuracy.choices.asking import Asking
from qtk.bench.accuracy.choices.loading import LoadedSet, load_set
from qtk.bench.accuracy.harness.evaluation import harness_scores
from qtk.bench.accuracy.languages.base import LanguageUnavailable
from qtk.bench.accuracy.likelihood import LikelihoodScore, reference_likelihoods, score_likelihood
from qtk.bench.accuracy.options import AccuracyOptions, ModelOptions
from qtk.bench.accuracy.programs.compatibility import as_the_harness
from qtk.bench.accuracy.programs.generation import ModelAnswers, open_model
from qtk.bench.accuracy.programs.language_run import ANSWERS_NAME, AnswerFile, LanguageRun
from qtk.bench.accuracy.results.choice_scores import ChoiceScore, score_choices
from qtk.bench.accuracy.results.result import AccuracyResult, LanguageScore, score_language
from qtk.bench.accuracy.suites.suites import MissingData, Part, chosen_parts, suite_tasks
from qtk.bench.accuracy.suites.tasks import Task
from qtk.bench.results import RESULT_NAME, write_result
from qtk.checkpoint.manifest import ManifestRecorder, canonical_digest, file_digest, output_files
from qtk.checkpoint.staging import staged_directory
from qtk.errors import InputError, MachineError, listing
from qtk.machine import machine
from qtk.peak_memory import PeakMemory
from qtk.progress import note
from qtk.sandbox.job import Level
from qtk.sandbox.pool import choose_level, promise

_IDENTITY_NAME = "run.json"


def run_accuracy(
    options: AccuracyOptions,
    out: Path,
    *,
    answers: Path | None = None,
    model: Path | None = None,
    model_options: ModelOptions | None = None,
    save_answers: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> AccuracyResult:
    """Scores the answers of a file, or those of a model (an engine or a checkpoint), and writes `out`.

    `out` holds result.json, tasks.jsonl (one verdict a line), generations.jsonl and the manifest. A stopped run leaves
    `out`.partial; with `resume` its finished tasks are not run again. `save_answers`: a file that also gets what the
    model generated. InputError unless exactly one of `answers` and `model` is given; MachineError when no language can
    be scored.
    """
    if (answers is None) == (model is None):
        raise InputError("Give either a MODEL or engine, or --generations FILE.")
    start = time.monotonic()
    asked = (model_options or ModelOptions()) if model is not None else None
    harness_tasks = [text.removeprefix(HARNESS) for text in options.suite if text.startswith(HARNESS)]
    parts = [part for text in options.suite if not text.startswith(HARNESS) for part in chosen_parts(text)]
    require_sense(parts, harness_tasks, options, asked, answers)
    if model is not None:
        require_logits(model, parts, harness_tasks)
    if save_answers is not None:
        require_programs(parts)
    # Rules of another harness are its clocks and its choice of tests too.
    parts = [replace(part, suite=as_the_harness(part.suite, options.rules)) for part in parts]
    scores = Scores()
    loaded = [one for part in parts for one in _loaded(part, options, scores)]
    _require_some_set(parts, loaded)
    level = None
    if any(part.suite.kind == "programs" for part in parts):
        level = choose_level(options.sandbox, options.allow_unsandboxed)
        if level in ("landlock", "rlimits"):
            note(f"qtk: sandbox level {level}: {promise(level)}")
    recorder = _recorder(options, asked, loaded, answers, model)
    source = AnswerFile(answers) if answers is not None else None
    if source is not None:
        scored = [(one.part.suite, one.part.name, one.tasks) for one in loaded if one.part.suite.kind == "programs"]
        source.require_told_apart(scored)
        source.require_samples(scored, max(options.k))
    decoding = _decoding(asked)
    identity = canonical_digest(
        {
            "options": options.model_dump(mode="json", exclude={"workers", "k"}),
            "model": [content_digest(model) if model else None, decoding],
            "tasks": [one.sha256 for one in loaded],
            "answers": file_digest(answers).sha256 if answers else None,
        }
    )
    with ExitStack() as stack:
        memory = stack.enter_context(PeakMemory())
        inputs = [path for path in (model, answers) if path is not None]
        staged = staged_directory(out, overwrite=overwrite, resumable=True, fresh=not resume, inputs=inputs)
        directory = stack.enter_context(staged)
        _require_same_run(directory, identity)  # under the lock: a second run must not touch what a first one writes
        stack.enter_context(_what_is_left(directory))
        (directory / _IDENTITY_NAME).write_text(json.dumps({"identity": identity}) + "\n", encoding="utf-8")
        asking: AnswerFile | ModelAnswers
        if asked is not None and model is not None:
            asking = ModelAnswers(stack.enter_context(open_model(model, asked.threads)), asked, options.rules)
        else:
            assert source is not None
            asking = source
        for one in loaded:
            _score(one, asking, options, level, directory, scores, alone=len(loaded) == 1)
        harness = []
        if harness_tasks:
            assert isinstance(asking, ModelAnswers)
            session = asking.logits_session
            harness = harness_scores(session, asking.options, harness_tasks, options.limit, directory, hub=options.hub)
        if not (scores.languages or scores.likelihood or scores.choices or harness):
            raise MachineError(
                "No language could be scored:\n" + "\n".join(f"{k}: {v}" for k, v in scores.skipped.items())
            )
        result = AccuracyResult(
            qtk_version=qtk.__version__,
            model=str(model) if model else None,
            answers=str(answers) if answers else None,
            rules=options.rules,
            prompt_format=asked.prompt if asked else None,
            decoding=decoding,
            sandbox={"level": level, "promise": promise(level), "limits": scores.limits_note()} if level else {},
            scores=scores.languages,
            likelihood=scores.likelihood,
            choices=scores.choices,
            lm_eval=harness,
            skipped=scores.skipped,
            seconds=round(time.monotonic() - start, 2),
            machine=machine().as_dict(),
        )
        write_result(result, directory / RESULT_NAME)
        (directory / _IDENTITY_NAME).unlink()
        recorder.write(directory, out, memory.peak_bytes)
    if save_answers is not None and (out / ANSWERS_NAME).exists():  # else no language could be scored
        shutil.copyfile(out / ANSWERS_NAME, save_answers)
    return result


def _decoding(asked: ModelOptions | None) -> dict[str, Any]:
    """How answers were decoded. With draws the batches belong to it: a row's place in its batch seeds what it draws."""
    if asked is None:
        return {}
    return asked.model_dump(mode="json", exclude={"threads"} if asked.temperature else {"threads", "batch_size"})


@dataclass(frozen=True)
class Loaded:
    """A part with what is to be scored: the tasks of a language, or the questions of a set.

    references: the tasks whose known solutions must pass first.
    """

    part: Part
    tasks: list[Task]
    references: list[Task]
    questions: LoadedSet | None
    files: list[Path]
    sha256: str

    @property
    def name(self) -> str:
        return f"{self.part.suite.name} {self.part.name}"


@dataclass
class Scores:
    """What is scored so far, by kind; limits: in force for a language's programs; skipped: what is not scored, and why."""

    languages: list[LanguageScore] = field(default_factory=list)
    likelihood: list[LikelihoodScore] = field(default_factory=list)
    choices: list[ChoiceScore] = field(default_factory=list)
    limits: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def limits_note(self) -> str:
        """The limits, said once where they are the same for all languages."""
        if len(set(self.limits.values())) == 1:
            return next(iter(self.limits.values()))
        return "; ".join(f"{name}: {note}" for name, note in self.limits.items())

    def skip(self, name: str, why: str) -> None:
        self.skipped[name] = why
        note(f"qtk: {name} is skipped. {why}")


def _loaded(part: Part, options: AccuracyOptions, scores: Scores) -> list[Loaded]:
    """The part with its tasks; nothing where their absence is no error."""
    try:
        if part.suite.kind == "choices":
            found = load_set(part.suite, part.name, options.data, options.limit, hub=options.hub)
            return [Loaded(part, [], [], found, found.files, found.sha256)]
        tasks, file = suite_tasks(part.suite, part.name, options.data)
        chosen = tasks[: options.limit]
        # Few of a suite's tasks may have a solution: then those are run whatever the limit.
        solved = [task for task in tasks if task.reference] if part.suite.solutions else chosen
        return [Loaded(part, chosen, solved, None, [file], file_digest(file).sha256)]
    except MissingData as error:
        if part.required:
            raise
        scores.skip(f"{part.suite.name} {part.name}", str(error))
        return []


def _require_some_set(parts: list[Part], loaded: list[Loaded]) -> None:
    """InputError for a suite of sets of which not one is there: what belongs to it besides would hide that."""
    found = {one.part.suite.name for one in loaded}
    for part in parts:
        if part.suite.kind == "choices" and part.suite.name not in found:
            files = listing(about.file for about in part.suite.sets.values())
            raise MissingData(
                f"None of the sets of {part.suite.name} is there. Name the folder that holds them with --data DIR or the "
                f"environment variable QTK_DATA, or take some from the hub with --hub:\n{files}"
            )


def _score(
    one: Loaded, source: AnswerFile | ModelAnswers, options: AccuracyOptions, level: Level | None, directory: Path,
    scores: Scores, *, alone: bool,
) -> None:  # fmt: skip
    """Scores one language or set into `scores`, or says there why it cannot be."""
    suite, name = one.part.suite, one.part.name
    if one.questions is not None:
        assert isinstance(source, ModelAnswers)
        about = suite.sets[name]
        asking = Asking(source.logits_session, source.options, suite.name, name, about, directory)
        answers, fewer = asking.answers(one.questions.rows)
        scores.choices.append(
            score_choices(suite.name, name, about.title, one.questions.name, one.sha256, about.mean, answers, fewer)
        )
        return
    identity = (suite.name, name, one.files[0].name, one.sha256)
    if suite.kind == "likelihood":
        assert isinstance(source, ModelAnswers)
        found = reference_likelihoods(source.logits_session, suite.name, name, one.tasks, directory)
        scores.likelihood.append(score_likelihood(*identity, found))
        return
    assert level is not None
    try:
        run = LanguageRun(
            suite, name, one.tasks, one.references, directory, rules=options.rules, level=level, workers=options.workers
        )
        scores.languages.append(score_language(*identity, run.verdicts(source), sorted(set(options.k))))
        scores.limits[one.name] = run.limits
    except LanguageUnavailable as error:
        if alone:
            raise
        scores.skip(one.name, str(error))


def _recorder(
    options: AccuracyOptions,
    asked: ModelOptions | None,
    loaded: list[Loaded],
    answers: Path | None,
    model: Path | None,
) -> ManifestRecorder:
    about = asked.model_dump(mode="json") if asked else {}
    recorder = ManifestRecorder("accuracy", {**options.model_dump(mode="json"), **about})
    for one in loaded:
        if one.files:
            path = one.files[0] if len(one.files) == 1 else Path(os.path.commonpath(one.files))
            recorder.add_input(f"tasks {one.name}", path, one.files)
    if answers is not None:
        recorder.add_input("answers", answers, [answers])
    if model is not None:
        if not model.is_dir():
            raise InputError(f"{model} is not a directory of a model or an engine.")
        recorder.add_input("model", model, output_files(model))
    return recorder


@contextmanager
def _what_is_left(partial: Path) -> Iterator[None]:
    """After an error: says that what is finished can be gone on with, or removes a directory in which nothing is."""
    try:
        yield
    except BaseException:
        lines = {path.name: path.read_bytes().count(b"\n") for path in sorted(partial.glob("*.jsonl"))}
        if any(lines.values()):
            kept = ", ".join(f"{count} lines of {name}" for name, count in lines.items() if count)
            note(f"qtk: {partial} keeps {kept}; the same command with --resume goes on from there.")
        else:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _require_same_run(partial: Path, identity: str) -> None:
    """InputError for an unfinished directory that does not belong to the very same run."""
    if not any(partial.iterdir()):
        return
    try:
        found = json.loads((partial / _IDENTITY_NAME).read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError):
        found = None
    if found != identity:
        raise InputError(
            f"{partial} was left by a run with other options, tasks, answers or another model. Run it without --resume "
            "to start anew."
        )
