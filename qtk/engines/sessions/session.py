"""The generation loop: positions, masks, cache slots, sampling. One loop for every runtime behind `Executor`.

Runtimes that bring a loop of their own (TensorRT-LLM, Edge-LLM) have sessions of their own behind the same `generate`.
"""

from __future__ import annotations

import functools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np

from qtk.engines.description import EngineDescription, EngineLimits, finishing_command, read_description
from qtk.engines.onnx.ports import mask_name
from qtk.engines.sessions.decoding import GREEDY, Decoding
from qtk.engines.sessions.executor import Executor, Forward, open_executor
from qtk.engines.sessions.sampling import Sampler
from qtk.errors import InputError, listing
from qtk.models.tokenizer import TextTokenizer
from qtk.targets.runtimes import engine_parts, load_part

OnToken = Callable[[int, int], bool | None]


@dataclass(frozen=True)
class Generation:
    """What a call produced: for each row the new tokens (without a stop token) and why the row ended.

    prefill_seconds runs from the call to the first token; token_seconds holds one entry for each later step.
    """

    tokens: list[list[int]]
    finish: list[Literal["stop", "length"]]
    prefill_seconds: float
    token_seconds: list[float]

    @property
    def seconds(self) -> float:
        """The whole call, from the prompt to the last token."""
        return self.prefill_seconds + sum(self.token_seconds)


class EngineSession(ABC):
    """An engine ready to generate, whatever runs it."""

    # Token ids that random prompts are drawn from; None where any will do.
    prompt_ids: np.ndarray | None = None
    # Whether a prompt longer than max_input_len is refused by the runtime even where its positions suffice.
    prompt_bound: bool = False

    def __init__(self, directory: Path, description: EngineDescription) -> None:
        self.directory = directory
        self.description = description

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027 - a runtime that ends with the process needs nothing
        """Releases what the runtime holds, device memory above all. Nothing can be generated afterwards."""

    @property
    def compiled_before(self) -> bool | None:
        """Whether the kernels that the runtime compiles at first use were found compiled; None where it compiles none."""
        return None

    def memory_bytes(self) -> int | None:
        """Device memory that the engine has taken so far, in bytes; None where its runtime does not report it."""
        return None

    @property
    def limits(self) -> EngineLimits:
        return self.description.limits

    @property
    def vocab_size(self) -> int:
        return self.description.vocab_size

    @functools.cached_property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer that the engine directory carries. InputError when it carries none."""
        return TextTokenizer(self.directory)

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        decoding: Decoding = GREEDY,
        on_token: OnToken | None = None,
    ) -> Generation:
        """Continues each prompt (token ids) by up to max_new_tokens tokens.

        on_token(row, token) is called for every token as it comes; a true answer ends the row with that token. InputError
        for empty or over-long prompts and unknown tokens.
        """

    def ends(self, decoding: Decoding) -> frozenset[int]:
        """The token ids that end a row."""
        if decoding.ignore_eos:
            return frozenset()
        return frozenset(self.description.stop_tokens) if decoding.stop is None else decoding.stop

    def check_call(self, rows: Sequence[Sequence[int]], new_tokens: int) -> None:
        """Raises InputError, with every reason, for a call that the engine cannot take."""
        limits, reasons = self.limits, []
        if not 1 <= len(rows) <= limits.max_batch:
            reasons.append(f"{len(rows)} rows; the engine takes 1 to {limits.max_batch} (--max-batch-size)")
        for number, row in enumerate(rows):
            if not len(row):
                reasons.append(f"row {number} is empty")
                continue
            if self.prompt_bound and len(row) > limits.max_input_len:
                reasons.append(
                    f"row {number}: {len(row)} tokens; the engine takes {limits.max_input_len} (--max-input-len)"
                )
            if len(row) + new_tokens > limits.max_positions:
                reasons.append(
                    f"row {number}: {len(row)} tokens and {new_tokens} new ones; the engine holds "
                    f"{limits.max_positions} (--max-input-len and --max-output-len of build-engine)"
                )
            if min(row) < 0 or max(row) >= self.vocab_size:
                reasons.append(f"row {number} holds a token outside 0..{self.vocab_size - 1}")
        if new_tokens < 0:
            reasons.append(f"{new_tokens} new tokens")
        if reasons:
            raise InputError(f"This engine cannot take the call:\n{listing(reasons)}")


class GeneratedRows:
    """The new tokens of a call's rows while it runs: `tokens` and `finish` by row, and `open_rows`, those not ended yet."""

    def __init__(self, rows: int, ends: Collection[int], on_token: OnToken | None) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(rows)]
        self.finish: list[Literal["stop", "length"]] = ["length"] * rows
        self.open_rows = set(range(rows))
        self._ends, self._on_token = ends, on_token

    def take(self, row: int, token: int) -> None:
        """Adds a token to an open row; a stop token, or a true answer of on_token, ends the row."""
        if row not in self.open_rows:
            return
        if token not in self._ends:
            self.tokens[row].append(token)
            if self._on_token is None or not self._on_token(row, token):
                return
        self.end(row)

    def end(self, row: int) -> None:
        """Ends a row before its longest length."""
        self.finish[row] = "stop"
        self.open_rows.discard(row)


def open_session(engine: Path | str, threads: int | None = None) -> EngineSession:
    """Opens an engine directory with whatever runs it. Errors as of `DecoderSession.open`."""
    directory = Path(engine)
    description = read_built(directory)
    place = engine_parts(description.backend).session
    if not place:
        return DecoderSession.open(directory, threads, description)
    session: EngineSession = load_part(place)(directory, description)
    return session


def gives_logits(backend: str) -> bool:
    """Whether engines of this backend give logits, and not only tokens."""
    return bool(engine_parts(backend).executor)


def read_built(directory: Path) -> EngineDescription:
    """The description of an engine that is built. InputError for one that was only prepared."""
    description = read_description(directory)
    if not description.built:
        raise InputError(
            f"{directory} was only prepared, not built. On a machine that can build it: {finishing_command(directory)}"
        )
    return description


class DecoderSession(EngineSession):
    """An engine of the portable graph, ready to decode. Not for several threads at once: it owns one cache."""

    def __init__(self, directory: Path, description: EngineDescription, executor: Executor) -> None:
        super().__init__(directory, description)
        self.executor = executor
        # Mask input by window: layers with the same sliding window share one.
        self._windows = {mask_name(window): window for window in dict.fromkeys(description.windows)}
        self._compiled_before = executor.compiled_before

    def close(self) -> None:
        self.executor.close()

    @property
    def compiled_before(self) -> bool | None:
        return self._compiled_before

    def memory_bytes(self) -> int | None:
        return self.executor.memory_bytes()

    @staticmethod
    def open(
        engine: Path | str, threads: int | None = None, description: EngineDescription | None = None
    ) -> DecoderSession:
        """Opens an engine directory. `threads` defaults to the usable cores. `description`: settings to run with in place
        of the engine's own, for example another accuracy level.

        InputError for a directory that is not an engine; MachineError when the runtime or the GPU it needs is absent.
        """
        directory = Path(engine)
        description = description or read_built(directory)
        return DecoderSession(directory, description, open_executor(directory, description, threads))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        decoding: Decoding = GREEDY,
        on_token: OnToken | None = None,
    ) -> Generation:
        """See EngineSession. Rows of unequal length give exactly what each gives alone."""
        start = time.perf_counter()
        self.check_call(prompts, max_new_tokens)
        sampler = Sampler(decoding)
        generated = GeneratedRows(len(prompts), self.ends(decoding), on_token)
        # Which row of the call stands in each row of the batch.
        rows = list(range(len(prompts)))

        def take(chosen: np.ndarray) -> None:
            for row, token in zip(rows, chosen.tolist(), strict=True):
                generated.take(row, token)

        lengths = np.array([len(prompt) for prompt in prompts], np.int64)
        last = np.empty((len(prompts), self.vocab_size), np.float32)
        for first, logits in self._prefill(prompts, every_position=False):
            ready = (lengths > first) & (lengths <= first + self.executor.chunk_tokens)
            last[ready] = logits[ready, 0]
        chosen = sampler(last, rows)
        prefill_seconds = time.perf_counter() - start
        take(chosen)
        token_seconds: list[float] = []
        while generated.open_rows and len(token_seconds) + 1 < max_new_tokens:
            begin = time.perf_counter()
            if len(generated.open_rows) < len(rows):
                kept = _kept(rows, generated.open_rows)
                if self.executor.keep_rows(kept):
                    rows, chosen, lengths = [rows[place] for place in kept], chosen[kept], lengths[kept]
            chosen = sampler(self._decode(chosen, lengths), rows)
            lengths += 1
            token_seconds.append(time.perf_counter() - begin)
            take(chosen)
        return Generation(generated.tokens, generated.finish, prefill_seconds, token_seconds)

    def logits(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """Logits [batch, tokens, vocab] float32 of every position, for scoring. Shorter rows are padded at their end; the
        padding's logits mean nothing. Use `logit_chunks` where the whole array does not fit the memory."""
        longest = max((len(row) for row in rows), default=0)
        result = np.empty((len(rows), longest, self.vocab_size), np.float32)
        for first, chunk in self.logit_chunks(rows):
            result[:, first : first + chunk.shape[1]] = chunk
        return result

    def logit_chunks(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[int, np.ndarray]]:
        """(first position, logits [batch, some tokens, vocab]) over the rows, a bounded piece at a time.

        A piece is valid until the next one is asked for.
        """
        self.check_call(rows, 0)
        yield from self._prefill(rows, every_position=True)

    def _prefill(self, rows: Sequence[Sequence[int]], *, every_position: bool) -> Iterator[tuple[int, np.ndarray]]:
        """Runs the rows through the cache in chunks; yields each chunk's first position and its logits.

        Rows are padded at the end. What a padded token writes into the cache is overwritten before a mask lets another
        token look at it. Without every_position, each row gives one position: its last, in the chunk that holds it.
        """
        batch, longest = len(rows), max(len(row) for row in rows)
        lengths = np.array([len(row) for row in rows], np.int64)
        ids = np.zeros((batch, longest), np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
        self.executor.start(batch)
        chunk = self.executor.chunk_logits if every_position else self.executor.chunk_tokens
        for first in range(0, longest, chunk):
            stop = min(longest, first + chunk)
            positions = np.broadcast_to(np.arange(first, stop), (batch, stop - first))
            if every_position:
                wanted = np.broadcast_to(np.arange(stop - first), (batch, stop - first))
            else:
                wanted = np.clip(lengths - 1 - first, 0, stop - first - 1)[:, None]
            yield first, self.run(ids[:, first:stop], positions, np.full(batch, first, np.int64), wanted)

    def _decode(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Runs one token of each row; `lengths` says at which position. Returns logits [batch, vocab]."""
        return self.run(tokens[:, None], lengths[:, None], lengths, np.zeros((len(lengths), 1), np.int64))[:, 0]

    def run(self, ids: np.ndarray, positions: np.ndarray, write_indices: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """One run of the graph. ids, positions [batch, tokens]; write_indices [batch], each row's first cache slot; wanted
        [batch, some], the places in `ids` whose logits are returned: [batch, some, vocab], valid until the next run."""
        cache_length = self.executor.reserve(int(positions.max()) + 1)
        slots, here = np.arange(cache_length), positions[:, None, :, None]
        causal = slots <= here
        masks = {
            name: causal if window is None else causal & (slots > here - window)
            for name, window in self._windows.items()
        }
        return self.executor.run(Forward(ids, positions, write_indices, masks, wanted[:, :, None]))


def _kept(rows: Sequence[int], wanted: Collection[int]) -> list[int]:
    """The places of the rows that are wanted, in an order in which few rows move: the last ones fill the free places."""
    places = [place for place, row in enumerate(rows) if row in wanted]
    stay = [place for place in places if place < len(places)]
    move = [place for place in reversed(places) if place >= len(places)]
    free = iter(move)
    return [place if place in stay else next(free) for place in range(len(places))]
