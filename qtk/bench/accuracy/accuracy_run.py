"""`qtk bench accuracy`: answers from a file or a model, scored part by part, into a directory that can be resumed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qtk
from qtk.bench.accuracy.answer_source import AnswerSource
from qtk.bench.accuracy.checks import Measures, require_measurable, require_scorable, require_some_set
from qtk.bench.accuracy.jsonl import chain_files
from qtk.bench.accuracy.kinds import measure_of
from qtk.bench.accuracy.languages.base import LanguageUnavailable
from qtk.bench.accuracy.measures.measure import Loaded, Workplace
from qtk.bench.accuracy.options import AccuracyOptions
from qtk.bench.accuracy.results.result import AccuracyResult
from qtk.bench.accuracy.results.score import Score
from qtk.bench.accuracy.shard_rows import gather, put_in_order
from qtk.bench.accuracy.shards import Sharding, do_in_shards
from qtk.bench.accuracy.suites.suites import MissingData, SuitePart, chosen_parts
from qtk.bench.accuracy.unfinished import BEGUN_NAME, kept_lines, said, unfinished_accuracy
from qtk.bench.results import RESULT_NAME, write_result
from qtk.checkpoint.begun import BegunWork
from qtk.checkpoint.manifest import ManifestRecorder
from qtk.checkpoint.result_versions import RESULT_VERSIONS
from qtk.checkpoint.staging import Resumption, staged_directory
from qtk.errors import MachineError
from qtk.machine import machine
from qtk.peak_memory import PeakMemory
from qtk.progress import note, warn, warnings_so_far
from qtk.sandbox.job import Level
from qtk.sandbox.pool import choose_level, promise


@dataclass(frozen=True)
class Output:
    """Where a run writes. resume: go on with what a stopped run has left. overwrite: replace an existing directory."""

    directory: Path
    resume: bool = False
    overwrite: bool = False


def run_accuracy(
    options: AccuracyOptions, source: AnswerSource, output: Output, sharding: Sharding | None = None
) -> AccuracyResult:
    """Scores the answers of a file, or those of a model (an engine or a checkpoint), and writes the output directory.

    It holds result.json, tasks.jsonl (one verdict a line), generations.jsonl (a model's answers), what other measures keep,
    and the manifest. A stopped run leaves NAME.partial; with `resume` its finished tasks are not run again. sharding: what
    does the tasks in its place; only what is read from their lines is done here. InputError for
    what cannot be measured, before anything is generated or run; MachineError when nothing could be scored.
    """
    start, warned = time.monotonic(), warnings_so_far()
    parts = [part for text in options.suite for part in chosen_parts(text)]
    measures = {kind: measure_of(kind)(options) for kind in dict.fromkeys(part.suite.kind for part in parts)}
    require_measurable(parts, measures, source)
    loaded, skipped = _load(parts, measures)
    require_some_set(parts, loaded)
    require_scorable(loaded, measures, source)
    level = _sandbox_level(options, measures)
    recorder = _recorder(options, source, loaded, warned)
    with _staged(recorder, _deciding_facts(options, source, loaded), source.path, output) as directory, closing(source):
        workplace, scores = Workplace(directory, level), list[Score]()
        gather(directory)  # what the shards of a stopped run have finished
        unavailable = do_in_shards(loaded, source, workplace, options, sharding) if sharding else {}
        for data in loaded:
            try:
                if reason := unavailable.get(data.part.label):
                    raise LanguageUnavailable(reason)
                scores += measures[data.part.suite.kind].score(data, source, workplace)
            except LanguageUnavailable as error:
                if len(loaded) == 1:
                    raise
                skipped[data.part.label] = _skip(data.part, error)
        if not scores:
            reasons = "\n".join(f"{name}: {reason}" for name, reason in skipped.items())
            raise MachineError(f"No language could be scored:\n{reasons}")
        put_in_order(directory, loaded)
        result = AccuracyResult(
            qtk_version=qtk.__version__,
            model=source.place if source.role == "model" else None,
            answers=source.place if source.role == "answers" else None,
            rules=options.rules,
            chat_format=source.options.chat_format if source.options else None,
            decoding=source.options.answer_settings() if source.options else {},
            sandbox={"level": level, "promise": promise(level), "limits": _limits(scores)} if level else {},
            scores=scores,
            skipped=skipped,
            seconds=round(time.monotonic() - start, 2),
            machine=machine().as_dict(),
        )
        write_result(result, directory / RESULT_NAME)
    return result


def _load(parts: Sequence[SuitePart], measures: Measures) -> tuple[list[Loaded], dict[str, str]]:
    """The parts with their data, and why those are skipped whose data is absent though it is not required."""
    loaded: list[Loaded] = []
    skipped: dict[str, str] = {}
    for part in parts:
        try:
            loaded.append(measures[part.suite.kind].load(part))
        except MissingData as error:
            if part.required:
                raise
            skipped[part.label] = _skip(part, error)
    return loaded, skipped


def _skip(part: SuitePart, error: Exception) -> str:
    warn(f"{part.label} is skipped. {error}")
    return str(error)


def _sandbox_level(options: AccuracyOptions, measures: Measures) -> Level | None:
    if not any("sandbox" in measure.needs for measure in measures.values()):
        return None
    level = choose_level(options.sandbox, options.allow_unsandboxed)
    if level in ("landlock", "rlimits"):
        warn(f"sandbox level {level}: {promise(level)}")
    return level


def _limits(scores: Sequence[Score]) -> str:
    """The limits of all programs, once if they are the same for all languages."""
    limits = {f"{score.suite} {score.name}": score.limits for score in scores if score.limits}
    if len(set(limits.values())) == 1:
        return next(iter(limits.values()))
    return "; ".join(f"{name}: {text}" for name, text in limits.items())


@contextmanager
def _staged(
    recorder: ManifestRecorder, facts: Mapping[str, Any], source: Path | None, output: Output
) -> Iterator[Path]:
    """The directory in which the run works. It is completed by the manifest, or left for --resume after an error."""
    staged = staged_directory(
        output.directory,
        overwrite=output.overwrite,
        resumption=Resumption(output.resume, facts, unfinished_accuracy),
        inputs=[] if source is None else [source],
    )
    with PeakMemory() as memory, staged as directory, _kept_after_an_error(directory):
        if not (directory / BEGUN_NAME).exists():
            BegunWork.now(facts, total=0, unit="line").write(directory / BEGUN_NAME)
        yield directory
        served = (directory / BEGUN_NAME, *chain_files(directory))
        recorder.write(directory, output.directory, memory.peak_bytes, remove=served)


def _deciding_facts(options: AccuracyOptions, source: AnswerSource, loaded: Sequence[Loaded]) -> dict[str, Any]:
    """What decides the result, by the name that a refusal calls it."""
    asked = source.options.answer_settings() if source.options else {}
    deciding = {**options.model_dump(mode="json", exclude={"workers", "k"}), **asked}
    return {
        **{f"--{name.replace('_', '-')}": value for name, value in deciding.items()},
        source.role: source.digest(),
        "tasks": [data.sha256 for data in loaded],
        "version of qtk, with other results": RESULT_VERSIONS["accuracy"],
    }


def _recorder(
    options: AccuracyOptions, source: AnswerSource, loaded: Sequence[Loaded], warned: int
) -> ManifestRecorder:
    model_options = source.options.model_dump(mode="json") if source.options else {}
    asked = {**options.model_dump(mode="json"), **model_options, **({} if source.path else {"endpoint": source.place})}
    recorder = ManifestRecorder("accuracy", asked, warned=warned)
    for data in loaded:
        if data.files:
            path = data.files[0] if len(data.files) == 1 else Path(os.path.commonpath(data.files))
            recorder.add_input(f"tasks {data.part.label}", path, data.files)
    if source.path is not None:
        recorder.add_input(source.role, source.path, source.files)
    return recorder


@contextmanager
def _kept_after_an_error(partial: Path) -> Iterator[None]:
    """After an error: says what --resume can go on with, or removes a directory in which nothing is finished."""
    try:
        yield
    except BaseException:
        if kept := kept_lines(partial):
            note(f"qtk: {partial} keeps {said(kept)}; the same command with --resume goes on from there.")
        else:
            shutil.rmtree(partial, ignore_errors=True)
        raise
