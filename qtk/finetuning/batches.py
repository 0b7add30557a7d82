"""Samples to steps: the split into parts, packs, the order of an epoch, and micro-batches as tensors.

A sample is an encoded row with its task. A line is what takes one row of a batch: one sample, or a pack of several. A step
takes `batch_size` lines, over all devices and micro-batches. Its loss is normalised over the whole of it, so how its lines
are dealt out does not matter to the result: lines of like length go together, which saves padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qtk.finetuning.chat_encoding import EncodedRow


@dataclass(frozen=True, eq=False)
class TrainingSample:
    """An encoded row of a task. task: the task's number."""

    row: EncodedRow
    task: int

    def __len__(self) -> int:
        return len(self.row)


Line = tuple[TrainingSample, ...]


@dataclass(frozen=True)
class Parts:
    """A task's rows, shuffled and split."""

    train: list[EncodedRow]
    valid: list[EncodedRow]
    test: list[EncodedRow]


def split_rows(rows: Sequence[EncodedRow], shares: tuple[float, float, float], seed: int) -> Parts:
    """The rows of one task, shuffled by `seed` and split. A share above 0 gets at least one row where there are enough."""
    order = np.random.default_rng(seed).permutation(len(rows))
    counts = [round(len(rows) * share) for share in shares[1:]]
    for part in (0, 1):
        if shares[part + 1] > 0 and counts[part] == 0 and len(rows) > 1 + sum(counts):
            counts[part] = 1
    valid, test = counts
    train = len(rows) - valid - test
    shuffled = [rows[i] for i in order]
    return Parts(shuffled[:train], shuffled[train : train + valid], shuffled[train + valid :])


def pack(samples: Sequence[TrainingSample], longest: int) -> list[Line]:
    """Samples in their order, laid end to end into lines of at most `longest` tokens. None is cut and none is lost."""
    lines: list[Line] = []
    line: list[TrainingSample] = []
    used = 0
    for sample in samples:
        if line and used + len(sample) > longest:
            lines.append(tuple(line))
            line, used = [], 0
        line.append(sample)
        used += len(sample)
    return [*lines, tuple(line)] if line else lines


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """The order of an epoch: a permutation that follows from the seed and the epoch alone."""
    return [int(i) for i in np.random.default_rng([seed, epoch]).permutation(count)]


@dataclass(frozen=True)
class DataOrder:
    """Which lines each step takes: epoch after epoch, each a new permutation. Nothing in it has to be saved to resume."""

    lines: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """The last step of an epoch takes what is left."""
        return -(-self.lines // self.batch_size)

    def step(self, number: int) -> list[int]:
        """The lines of step `number`, from 0."""
        epoch, at = divmod(number, self.steps_per_epoch)
        order = shuffled(self.lines, self.seed, epoch)
        return order[at * self.batch_size : (at + 1) * self.batch_size]


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Tensors of one forward pass, [lines, tokens].

    ids: int64, right-padded. labels: int64, the token that follows. coefficients: float32, what the loss of each label
    counts in the loss of the step; 0 where nothing is learnt. tasks: int64. positions: int64, restarting with each sample of
    a pack so that samples do not see each other, or None for 0, 1, 2, ...
    """

    ids: torch.Tensor
    labels: torch.Tensor
    coefficients: torch.Tensor
    tasks: torch.Tensor
    positions: torch.Tensor | None

    @property
    def tokens(self) -> int:
        return self.ids.numel()


def micro_batches(lines: Sequence[Line], size: int, ranks: int, rank: int) -> list[list[Line] | None]:
    """This rank's share of a step's lines, `size` at a time, lines of like length together; None for a turn that it sits out.

    Every rank gets equally many, so that all of them are in the same forward pass at any time.
    """
    ordered = sorted(lines, key=lambda line: sum(map(len, line)))
    chunks: list[list[Line] | None] = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    chunks += [None] * (-len(chunks) % ranks)
    return chunks[rank::ranks]


def collate(
    lines: Sequence[Line], coefficients: Sequence[Sequence[float]], pad: int, *, across: bool = False
) -> MicroBatch:
    """The tensors of some lines. coefficients: of each sample of each line, for each of its learnt tokens.

    across: samples of a pack see those before them, and the first token of a sample is predicted from them, as MFTCoder has
    it. What comes after the last learnt token of all lines is left out.
    """
    made = [_line_arrays(line, weights, across) for line, weights in zip(lines, coefficients, strict=True)]
    # At least one token, for lines of which nothing is learnt.
    width = max(1, *(int(np.flatnonzero(learnt).max(initial=-1)) + 1 for _, _, learnt, _, _ in made))
    shape = (len(lines), width)
    ids, labels = np.full(shape, pad, np.int64), np.zeros(shape, np.int64)
    counted, tasks = np.zeros(shape, np.float32), np.zeros(shape, np.int64)
    positions = np.zeros(shape, np.int64)
    for at, (tokens, weight, _, task, places) in enumerate(made):
        taken = min(width, len(tokens) - 1)
        ids[at, :taken], labels[at, :taken] = tokens[:taken], tokens[1 : taken + 1]
        counted[at, :taken], tasks[at, :taken] = weight[:taken], task[:taken]
        # Padding goes on counting, so that it does not look like another sample.
        positions[at] = np.concatenate([places[:taken], np.arange(width - taken) + places[taken - 1] + 1])
    packed = not across and any(len(line) > 1 for line in lines)
    return MicroBatch(
        torch.from_numpy(ids),
        torch.from_numpy(labels),
        torch.from_numpy(counted),
        torch.from_numpy(tasks),
        torch.from_numpy(positions) if packed else None,
    )


def _line_arrays(
    line: Line, weights: Sequence[float], across: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(tokens [n], and for each of the n - 1 labels: coefficient, whether it is learnt, task; position of each token)."""
    tokens = np.concatenate([sample.row.ids for sample in line])
    learnt = np.concatenate([learnt_labels(sample, first=across and at > 0) for at, sample in enumerate(line)])
    weight = np.repeat(np.array(weights, np.float32), [len(sample) for sample in line])
    task = np.repeat([sample.task for sample in line], [len(sample) for sample in line])
    positions = np.arange(len(tokens)) if across else np.concatenate([np.arange(len(sample)) for sample in line])
    return tokens, (weight * learnt)[1:], learnt[1:], task[1:], positions


def learnt_counts(line: Line, *, across: bool) -> list[int]:
    """How many tokens of each sample of a line are predicted. across: as of `collate`."""
    return [int(learnt_labels(sample, first=across and at > 0).sum()) for at, sample in enumerate(line)]


def learnt_labels(sample: TrainingSample, *, first: bool) -> np.ndarray:
    """Which tokens of a sample are predicted, bool [tokens]. first: whether its first one can be, from the sample before."""
    learnt = sample.row.learnt.copy()
    learnt[0] &= first
    return learnt
