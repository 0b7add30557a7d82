"""Answers from an engine: batches of prompts of like length, each row stopped as soon as its answer is certain."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from qtk.bench.accuracy.options import ModelOptions, Rules, harness_of
from qtk.bench.accuracy.programs.answers import Answer
from qtk.bench.accuracy.programs.compatibility import bigcode_stops
from qtk.bench.accuracy.programs.extraction import certain_end
from qtk.bench.accuracy.programs.prompts import encode, prompt_text
from qtk.bench.accuracy.suites.suites import Suite
from qtk.bench.accuracy.suites.tasks import Task
from qtk.engines.build import build_engine
from qtk.engines.description import is_engine
from qtk.engines.options import BuildOptions
from qtk.engines.sessions.session import DecoderSession, EngineSession, open_session
from qtk.engines.sessions.text import TextPieces
from qtk.errors import InputError, listing
from qtk.progress import Progress, note

Key = tuple[str, str, str, int]


class ModelAnswers:
    """Generates the answers of a suite's tasks with one session."""

    def __init__(self, session: EngineSession, options: ModelOptions, rules: Rules) -> None:
        """InputError when several samples are asked for without a temperature: they would all be the same."""
        if options.samples > 1 and options.temperature == 0:
            raise InputError("--samples above 1 needs a --temperature above 0: greedy samples are all the same.")
        self.session, self.options, self.rules = session, options, rules

    @property
    def logits_session(self) -> DecoderSession:
        """The session, where it gives probabilities. InputError where its runtime gives tokens only."""
        if not isinstance(self.session, DecoderSession):
            raise InputError(f"{self.session.directory}: the runtime of this engine gives tokens only.")
        return self.session

    def __call__(
        self, suite: Suite, language: str, tasks: Sequence[Task], take: Callable[[Answer], None], finished: set[Key]
    ) -> None:
        """Calls `take` with every answer that is not in `finished`. InputError names every prompt that is too long."""
        wanted = [(task, sample) for task in tasks for sample in range(self.options.samples)]
        done = {
            n for n, (task, sample) in enumerate(wanted) if (suite.name, language, task.task_id, sample) in finished
        }
        prompts = {task.task_id: self._prompt(suite, task) for task, _ in wanted}
        self._require_room(suite, language, prompts)

        def enough(index: int, text: str, piece: str) -> bool:
            # Only the end of a line or of a fence can make an answer certain.
            return ("\n" in piece or "`" in piece) and self._certain(suite, wanted[index][0], text)

        rows = [prompts[task.task_id] for task, _ in wanted]
        names = [f"{suite.name} {task.task_id} {sample}" for task, sample in wanted]
        label = f"{suite.name} {language}: generating"
        for index, text in generated_texts(
            self.session, rows, self.options.max_new_tokens, self.options, enough, names, label, done
        ):
            task, sample = wanted[index]
            take(Answer(suite.name, language, task.task_id, sample, text))

    def _prompt(self, suite: Suite, task: Task) -> list[int]:
        return encode(self.session.tokenizer, prompt_text(suite, task, self.options.prompt), self.options.prompt)

    def _require_room(self, suite: Suite, language: str, prompts: dict[str, list[int]]) -> None:
        room = self.session.limits.max_positions - self.options.max_new_tokens
        long = [f"{name}: {len(ids)} tokens" for name, ids in prompts.items() if len(ids) > room]
        if long:
            raise InputError(
                f"The engine holds {self.session.limits.max_positions} tokens, so with --max-new-tokens "
                f"{self.options.max_new_tokens} these prompts of {suite.name} {language} are too long:\n{listing(long)}"
            )

    def _certain(self, suite: Suite, task: Task, text: str) -> bool:
        if harness_of(self.rules) == "codefuse":
            return False  # that harness lets the model go on to its end-of-sequence token
        if self.rules == "bigcode":
            return any(stop in text for stop in bigcode_stops(suite, task))
        return certain_end(suite, task, text, chat=self.options.prompt != "plain")


def generated_texts(
    session: EngineSession,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    options: ModelOptions,
    enough: Callable[[int, str, str], bool],
    names: Sequence[str],
    label: str,
    done: Collection[int] = (),
) -> Iterator[tuple[int, str]]:
    """(number of a prompt, its continuation) in the order in which they are done; those in `done` are left out.

    enough(number, text so far, newest piece) ends a continuation. names: one a prompt, from which its draws are seeded:
    neither the batch it is in nor a stop before it changes them.
    """
    size = min(options.batch_size or session.limits.max_batch, session.limits.max_batch)
    # Like lengths together: a batch is padded to its longest prompt.
    missing = [number for number in range(len(prompts)) if number not in done]
    order = sorted(missing, key=lambda number: len(prompts[number]))
    with Progress(label, len(missing), "answers") as progress:
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            texts = _batch_texts(session, prompts, batch, max_new_tokens, options, enough, names)
            yield from zip(batch, texts, strict=True)
            progress.advance(len(batch))


def _batch_texts(
    session: EngineSession,
    prompts: Sequence[Sequence[int]],
    batch: list[int],
    max_new_tokens: int,
    options: ModelOptions,
    enough: Callable[[int, str, str], bool],
    names: Sequence[str],
) -> list[str]:
    tokenizer = session.tokenizer
    pieces = [TextPieces(tokenizer) for _ in batch]
    texts = [""] * len(batch)

    def on_token(row: int, token: int) -> bool:
        piece = pieces[row].add(token)
        texts[row] += piece
        return enough(batch[row], texts[row], piece)

    made = session.generate(
        [prompts[number] for number in batch],
        max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=[options.seed + zlib.crc32(names[number].encode()) for number in batch],
        on_token=on_token,
    )
    return [tokenizer.decode(tokens) for tokens in made.tokens]


@contextmanager
def open_model(model: Path, threads: int | None) -> Iterator[EngineSession]:
    """A session on an engine directory; a checkpoint is first built into a CPU engine in a temporary directory."""
    if is_engine(model):
        with open_session(model, threads) as session:
            yield session
        return
    with TemporaryDirectory(prefix="qtk-engine-") as folder:
        note(f"qtk: {model} is no engine; a temporary one is built for the CPU.")
        engine = Path(folder) / "engine"
        build_engine(model, engine, BuildOptions())
        with open_session(engine, threads) as session:
            yield session
