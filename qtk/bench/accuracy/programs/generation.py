"""Answers from an engine: batches of prompts of like length, each row stopped as soon as its answer is certain."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from qtk.bench.accuracy.options import ModelOptions, Rules, harness_of
from qtk.bench.accuracy.programs.answers import Answer, AnswerKey
from qtk.bench.accuracy.programs.compatibility import bigcode_stops
from qtk.bench.accuracy.programs.extraction import certain_end
from qtk.bench.accuracy.programs.prompts import encode, prompt_text
from qtk.bench.accuracy.suites.suites import SuitePart
from qtk.bench.accuracy.task import Task
from qtk.engines.build import build_engine
from qtk.engines.description import is_engine
from qtk.engines.options import BuildOptions
from qtk.engines.sessions.session import EngineSession, open_session
from qtk.engines.sessions.text import TextPieces
from qtk.errors import InputError, listing
from qtk.progress import Progress, note


class ModelAnswers:
    """Generates the answers to a part's tasks with one session."""

    def __init__(self, session: EngineSession, options: ModelOptions, rules: Rules) -> None:
        self.session, self.options, self.rules = session, options, rules

    def answers(self, part: SuitePart, tasks: Sequence[Task], finished: Collection[AnswerKey] = ()) -> Iterator[Answer]:
        """The answers whose keys are not in `finished`, as they are done.

        InputError names every prompt that is too long, before anything is generated.
        """
        wanted = answer_keys(part, tasks, self.options.samples)
        missing = {key: task for key, task in wanted.items() if key not in finished}
        prompts = {task.task_id: self._prompt(part, task) for task in tasks}
        self._require_room(part, prompts)
        requests = [
            TextRequest(key.name, prompts[key.task_id], answer_end(part, task, self.options, self.rules))
            for key, task in missing.items()
        ]
        keys = list(missing)
        texts = generated_texts(
            self.session, requests, self.options.max_new_tokens, self.options, f"{part.label}: generating"
        )
        for number, text in texts:
            key = keys[number]
            yield Answer(key.suite, key.language, key.task_id, key.sample, text)

    def _prompt(self, part: SuitePart, task: Task) -> list[int]:
        chat_format = self.options.chat_format
        return encode(self.session.tokenizer, prompt_text(part.suite, task, chat_format), chat_format)

    def _require_room(self, part: SuitePart, prompts: dict[str, list[int]]) -> None:
        room = self.session.limits.max_positions - self.options.max_new_tokens
        long = [f"{name}: {len(ids)} tokens" for name, ids in prompts.items() if len(ids) > room]
        if long:
            raise InputError(
                f"The engine holds {self.session.limits.max_positions} tokens, so with --max-new-tokens "
                f"{self.options.max_new_tokens} these prompts of {part.label} are too long:\n{listing(long)}"
            )


def answer_keys(part: SuitePart, tasks: Sequence[Task], samples: int) -> dict[AnswerKey, Task]:
    """Every answer that a model gives, with its task, in the order of the tasks."""
    return {
        AnswerKey(part.suite.name, part.name, task.task_id, number): task for task in tasks for number in range(samples)
    }


def answer_end(part: SuitePart, task: Task, options: ModelOptions, rules: Rules) -> Callable[[str, str], bool]:
    """What says whether an answer may stop, by its text so far and its newest piece: because the rest cannot change the
    program that is taken from it."""

    def certain(text: str) -> bool:
        if harness_of(rules) == "codefuse":
            return False  # that harness lets the model go on to its end-of-sequence token
        if rules == "bigcode":
            return any(stop in text for stop in bigcode_stops(part.suite, task))
        return certain_end(part.suite, task, text, chat=options.chat_format != "none")

    def ended(text: str, piece: str) -> bool:
        # Only the end of a line or of a fence can make an answer certain.
        return ("\n" in piece or "`" in piece) and certain(text)

    return ended


def answer_seed(options: ModelOptions, name: str) -> int:
    """The seed of one answer's draws, whatever is generated beside it."""
    return options.seed + zlib.crc32(name.encode())


@dataclass(frozen=True)
class TextRequest:
    """One text to generate. name: the seed of its draws is made from it, so that neither the batch it is in nor a stop
    before it changes them. ended(text so far, newest piece): whether the text may stop."""

    name: str
    prompt: list[int]
    ended: Callable[[str, str], bool]


def generated_texts(
    session: EngineSession, requests: Sequence[TextRequest], max_new_tokens: int, options: ModelOptions, label: str
) -> Iterator[tuple[int, str]]:
    """(number of a request, its text) in the order in which they are done. label: of the progress."""
    size = min(options.batch_size or session.limits.max_batch, session.limits.max_batch)
    # Prompts of like length together: a batch is padded to its longest prompt.
    order = sorted(range(len(requests)), key=lambda number: len(requests[number].prompt))
    with Progress(label, len(requests), "answers") as progress:
        for start in range(0, len(order), size):
            numbers = order[start : start + size]
            texts = _batch_texts(session, [requests[number] for number in numbers], max_new_tokens, options)
            yield from zip(numbers, texts, strict=True)
            progress.advance(len(numbers))


def _batch_texts(
    session: EngineSession, batch: Sequence[TextRequest], max_new_tokens: int, options: ModelOptions
) -> list[str]:
    tokenizer = session.tokenizer
    pieces = [TextPieces(tokenizer) for _ in batch]
    texts = [""] * len(batch)

    def on_token(row: int, token: int) -> bool:
        piece = pieces[row].add(token)
        texts[row] += piece
        return batch[row].ended(texts[row], piece)

    generation = session.generate(
        [request.prompt for request in batch],
        max_new_tokens,
        options.decoding(tuple(answer_seed(options, request.name) for request in batch)),
        on_token,
    )
    return [tokenizer.decode(tokens) for tokens in generation.tokens]


@contextmanager
def open_model(model: Path, threads: int | None) -> Iterator[EngineSession]:
    """A session on an engine directory; a checkpoint is first built into a CPU engine in a temporary directory."""
    if is_engine(model):
        with open_session(model, threads) as session:
            yield session
        return
    with TemporaryDirectory(prefix="qtk-engine-") as folder:
        note(f"qtk: {model} is a checkpoint: a temporary engine is built from it for the CPU.")
        engine = Path(folder) / "engine"
        build_engine(model, engine, BuildOptions())
        with open_session(engine, threads) as session:
            yield session
