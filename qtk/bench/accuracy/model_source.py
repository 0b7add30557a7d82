"""A model as a source of answers: opened when it is first asked, its answers kept as they are generated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Literal

from qtk.bench.accuracy.answer_source import AskedModel
from qtk.bench.accuracy.jsonl import complete_rows, write_row
from qtk.bench.accuracy.options import ModelOptions, Rules
from qtk.bench.accuracy.programs.answers import Answer, AnswerKey
from qtk.bench.accuracy.programs.generation import ModelAnswers, answer_keys, open_model
from qtk.bench.accuracy.suites.suites import SuitePart
from qtk.bench.accuracy.task import Task
from qtk.checkpoint.hub import model_directory
from qtk.checkpoint.manifest import MANIFEST_NAME, canonical_digest, file_digest, output_files
from qtk.engines.description import is_engine, read_description
from qtk.engines.sessions.session import DecoderSession, EngineSession, gives_logits
from qtk.errors import InputError

ANSWERS_NAME = "generations.jsonl"


class ModelSource:
    """An engine or a checkpoint, as an `AnswerSource`."""

    role: Literal["model"] = "model"

    def __init__(self, path: Path, options: ModelOptions, rules: Rules) -> None:
        """path: a directory, or an id of the hub. InputError when it is neither, or when several samples are to be generated
        without a temperature."""
        path = model_directory(path)
        if not path.is_dir():
            raise InputError(f"{path} is not a directory of a model or an engine.")
        require_samples_that_differ(options)
        self.path, self.options, self.rules = path, options, rules
        self._open = ExitStack()

    @property
    def files(self) -> list[Path]:
        return output_files(self.path)

    @property
    def place(self) -> str:
        return str(self.path)

    @property
    def label(self) -> str:
        return f"--samples {self.options.samples}"

    @property
    def without_logits(self) -> str | None:
        if is_engine(self.path) and not gives_logits(backend := read_description(self.path).backend):
            return (
                f"The engine's backend, {backend}, gives tokens only: use the checkpoint, or an engine of --backend "
                "onnxruntime or tensorrt."
            )
        return None

    def digest(self) -> str:
        return content_digest(self.path)

    def ambiguous(self, parts: Sequence[tuple[SuitePart, Sequence[Task]]]) -> list[str]:
        return []

    def keys(self, part: SuitePart, tasks: Sequence[Task]) -> list[AnswerKey]:
        return list(answer_keys(part, tasks, self.options.samples))

    def answers(self, part: SuitePart, tasks: Sequence[Task], directory: Path) -> Iterable[Answer]:
        def generate(finished: Collection[AnswerKey]) -> Iterator[Answer]:
            return ModelAnswers(self._session, self.options, self.rules).answers(part, tasks, finished)

        return kept_answers(directory / ANSWERS_NAME, part, self.keys(part, tasks), generate)

    def asked_model(self) -> AskedModel:
        if not isinstance(self._session, DecoderSession):
            raise InputError(f"{self.path}: the runtime of this engine gives tokens only.")
        return AskedModel(self._session, self.options)

    def close(self) -> None:
        self._open.close()

    @cached_property
    def _session(self) -> EngineSession:
        return self._open.enter_context(open_model(self.path, self.options.threads))


def require_samples_that_differ(options: ModelOptions) -> None:
    """InputError when several samples are to be generated without a temperature."""
    if options.samples > 1 and options.temperature == 0:
        raise InputError("--samples above 1 needs a --temperature above 0: greedy samples are all the same.")


def kept_answers(
    file: Path,
    part: SuitePart,
    keys: Sequence[AnswerKey],
    generate: Callable[[Collection[AnswerKey]], Iterator[Answer]],
) -> Iterator[Answer]:
    """The part's answers that the file holds, then the others as they are generated, each written before it is given on.

    generate: is given the keys that are there already, and called only where some are not.
    """
    place = (part.suite.name, part.name)
    kept = [Answer(**row) for row in complete_rows(file) if (row["suite"], row["language"]) == place]
    yield from kept
    finished = {answer.key for answer in kept}
    if all(key in finished for key in keys):
        return
    with open(file, "a", encoding="utf-8") as stream:
        for answer in generate(finished):
            write_row(stream, asdict(answer))
            yield answer


def content_digest(model: Path) -> str:
    """What tells a model's content from another's without reading all of it.

    Its manifest, which holds every file's digest, and the sizes; without a manifest the times of the files too.
    """
    manifest = model / MANIFEST_NAME
    known = file_digest(manifest).sha256 if manifest.is_file() else None
    files = [
        (str(path.relative_to(model)), path.stat().st_size, None if known else path.stat().st_mtime_ns)
        for path in output_files(model)
    ]
    return canonical_digest([known, files])
