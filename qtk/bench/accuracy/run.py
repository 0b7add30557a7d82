"""`qtk bench accuracy`: answers from a file or a model, scored suite by suite, into a directory that can be resumed."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import ExitStack
from pathlib import Path

import qtk
from qtk.bench.accuracy.compatibility import bigcode_stops
from qtk.bench.accuracy.generation import ModelAnswers, open_model
from qtk.bench.accuracy.language_run import AnswerFile, LanguageRun
from qtk.bench.accuracy.likelihood import LikelihoodScore, reference_likelihoods, score_likelihood
from qtk.bench.accuracy.options import AccuracyOptions, ModelOptions
from qtk.bench.accuracy.results import AccuracyResult, LanguageScore, score_language
from qtk.bench.accuracy.sandbox.job import Limits
from qtk.bench.accuracy.sandbox.pool import PROMISES, choose_level, limits_note
from qtk.bench.accuracy.suites import Suite, parse_suite, suite_tasks
from qtk.bench.accuracy.tasks import Task
from qtk.bench.accuracy.toolchains.base import LanguageUnavailable
from qtk.bench.results import RESULT_NAME, write_result
from qtk.checkpoint.manifest import ManifestRecorder, canonical_digest, file_digest, output_files
from qtk.checkpoint.staging import partial_path, staged_directory
from qtk.errors import InputError, MachineError
from qtk.machine import PeakMemory, machine
from qtk.progress import note

_IDENTITY_NAME = "run.json"


def run_accuracy(
    options: AccuracyOptions,
    out: Path,
    *,
    answers: Path | None = None,
    model: Path | None = None,
    model_options: ModelOptions | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> AccuracyResult:
    """Scores the answers of a file, or those of a model (an engine or a checkpoint), and writes `out`.

    `out` holds result.json, tasks.jsonl (one verdict a line), generations.jsonl and the manifest. A stopped run leaves
    `out`.partial; with `resume` its finished tasks are not run again. InputError unless exactly one of `answers` and
    `model` is given; MachineError when no language can be scored.
    """
    if (answers is None) == (model is None):
        raise InputError("Give either a MODEL or engine, or --generations FILE.")
    start = time.monotonic()
    asked = (model_options or ModelOptions()) if model is not None else None
    plan = [
        (suite, language)
        for text in options.suite
        for suite, languages in [parse_suite(text)]
        for language in languages
    ]
    _require_sense(plan, options, answers)
    level = choose_level(options.sandbox, options.allow_unsandboxed)
    if level in ("landlock", "rlimits"):
        note(f"qtk: sandbox level {level}: {PROMISES[level]}")
    loaded = [(suite, language, *_limited(suite, language, options)) for suite, language in plan]
    recorder = _recorder(options, asked, loaded, answers, model)
    decoding = asked.model_dump(mode="json", exclude={"batch_size", "threads"}) if asked else {}
    identity = canonical_digest(
        {
            "options": options.model_dump(mode="json", exclude={"workers"}),
            "model": [str(model), decoding],
            "tasks": [file_digest(file).sha256 for _, _, _, file in loaded],
            "answers": file_digest(answers).sha256 if answers else None,
        }
    )
    _clear_unless_resumed(out, identity, resume)
    scores: list[LanguageScore] = []
    likelihood: list[LikelihoodScore] = []
    skipped: dict[str, str] = {}
    with ExitStack() as stack:
        memory = stack.enter_context(PeakMemory())
        directory = stack.enter_context(staged_directory(out, overwrite=overwrite, resumable=True))
        (directory / _IDENTITY_NAME).write_text(json.dumps({"identity": identity}) + "\n", encoding="utf-8")
        source: AnswerFile | ModelAnswers
        if asked is not None and model is not None:
            source = ModelAnswers(stack.enter_context(open_model(model, asked.threads)), asked, options.rules)
        else:
            assert answers is not None
            source = AnswerFile(answers)
        for suite, language, tasks, file in loaded:
            about = (suite.name, language, file.name, file_digest(file).sha256)
            if suite.kind == "likelihood":
                assert isinstance(source, ModelAnswers)
                found = reference_likelihoods(source.session, tasks, f"{suite.name} {language}")
                likelihood.append(score_likelihood(*about, found))
                continue
            try:
                verdicts = LanguageRun(
                    suite, language, tasks, directory, rules=options.rules, level=level, workers=options.workers
                ).verdicts(source)
            except MachineError as error:
                if len(plan) == 1 or not isinstance(error, LanguageUnavailable):
                    raise
                skipped[f"{suite.name} {language}"] = str(error)
                note(f"qtk: {suite.name} {language} is skipped. {error}")
                continue
            scores.append(score_language(*about, verdicts, sorted(set(options.k))))
        if not scores and not likelihood:
            raise MachineError("No language could be scored:\n" + "\n".join(f"{k}: {v}" for k, v in skipped.items()))
        result = AccuracyResult(
            qtk_version=qtk.__version__,
            model=str(model) if model else None,
            answers=str(answers) if answers else None,
            rules=options.rules,
            prompt_format=asked.prompt if asked else None,
            decoding=decoding,
            sandbox={"level": level, "promise": PROMISES[level], "limits": limits_note(Limits())},
            scores=scores,
            likelihood=likelihood,
            skipped=skipped,
            seconds=round(time.monotonic() - start, 2),
            machine=machine().as_dict(),
        )
        write_result(result, directory / RESULT_NAME)
        (directory / _IDENTITY_NAME).unlink()
        recorder.write(directory, out, memory.peak_bytes)
    return result


def _require_sense(plan: list[tuple[Suite, str]], options: AccuracyOptions, answers: Path | None) -> None:
    """InputError for rules that a suite has not, and for a likelihood without a model."""
    for suite, _ in plan:
        if suite.kind == "likelihood" and answers is not None:
            raise InputError(f"Suite {suite.name} needs a model or an engine: a file of answers has no probabilities.")
        if options.compat == "bigcode" and suite.kind == "programs":
            bigcode_stops(suite)
    names = [(suite.name, language) for suite, language in plan]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"Asked for twice: {', '.join(' '.join(name) for name in sorted(twice))}.")


def _recorder(
    options: AccuracyOptions,
    asked: ModelOptions | None,
    loaded: list[tuple[Suite, str, list[Task], Path]],
    answers: Path | None,
    model: Path | None,
) -> ManifestRecorder:
    about = asked.model_dump(mode="json") if asked else {}
    recorder = ManifestRecorder("accuracy", {**options.model_dump(mode="json"), **about})
    for suite, language, _, file in loaded:
        recorder.add_input(f"tasks {suite.name} {language}", file, [file])
    if answers is not None:
        recorder.add_input("answers", answers, [answers])
    if model is not None:
        if not model.is_dir():
            raise InputError(f"{model} is not a directory of a model or an engine.")
        recorder.add_input("model", model, output_files(model))
    return recorder


def _limited(suite: Suite, language: str, options: AccuracyOptions) -> tuple[list[Task], Path]:
    tasks, file = suite_tasks(suite, language, options.data)
    return tasks[: options.limit], file


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
