"""Losses of a model on lines: for each task by tokens and by rows, over whole sets and all devices, not means of batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from qtk.finetuning.batches import Line, MicroBatch, collate, micro_batches
from qtk.finetuning.losses import token_losses
from qtk.finetuning.sharding import is_sharded

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class ModelOnRanks:
    """A model on this device and, through accelerate, on others. dtype: of its products. pad: the id that fills a batch."""

    model: Any
    accelerator: Accelerator
    dtype: torch.dtype
    pad: int
    micro_batch: int

    @property
    def ranks(self) -> int:
        return int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        return int(self.accelerator.process_index)

    @contextmanager
    def own_gradients(self) -> Iterator[None]:
        """Backward passes within add to this device's own gradients, which the next pass outside sums over the devices."""
        if not is_sharded(self.model):
            with self.accelerator.no_sync(self.model):
                yield
            return
        self.model.set_requires_gradient_sync(False)
        yield
        self.model.set_requires_gradient_sync(True)

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of a float64 tensor over all devices, on the CPU."""
        if self.ranks == 1:
            return values.cpu()
        return torch.as_tensor(self.accelerator.reduce(values.to(self.accelerator.device), "sum")).cpu()


@dataclass(frozen=True)
class LabelLosses:
    """Of each label that is learnt, [n]: its loss in nats, its coefficient, its task, its line in the micro-batch."""

    losses: torch.Tensor
    coefficients: torch.Tensor
    tasks: torch.Tensor
    lines: torch.Tensor


def label_losses(model: ModelOnRanks, batch: MicroBatch) -> LabelLosses:
    """One forward pass. Logits are made where something is learnt, not over the prompts."""
    device = model.accelerator.device
    learnt = batch.coefficients != 0
    columns = learnt.any(0).nonzero().squeeze(1)
    with torch.autocast(device.type, model.dtype, enabled=model.dtype != torch.float32):
        logits = model.model(
            input_ids=batch.ids.to(device),
            position_ids=None if batch.positions is None else batch.positions.to(device),
            logits_to_keep=columns.to(device),
            use_cache=False,
        ).logits
    kept = learnt[:, columns]
    lines, _ = kept.nonzero(as_tuple=True)

    def at_labels(values: torch.Tensor) -> torch.Tensor:
        return values[:, columns][kept].to(device)

    losses = token_losses(logits[kept.to(device)], at_labels(batch.labels))
    return LabelLosses(losses, at_labels(batch.coefficients), at_labels(batch.tasks), lines.to(device))


@dataclass(frozen=True)
class TaskLosses:
    """Sums for each task, float64 [tasks]: of token losses, tokens, means of rows, rows."""

    loss: torch.Tensor
    tokens: torch.Tensor
    row_means: torch.Tensor
    rows: torch.Tensor

    def by_task(self) -> list[float | None]:
        """The mean loss of a token of each task, in nats; None for a task without tokens."""
        pairs = zip(self.loss.tolist(), self.tokens.tolist(), strict=True)
        return [loss / tokens if tokens else None for loss, tokens in pairs]

    def overall(self, case: str, weights: Sequence[float]) -> float:
        """The loss of the whole set in a case of `losses`; CoBa's is case3 with equal weights, which stay the same."""
        if case == "case1":
            return float(self.loss.sum() / self.tokens.sum())
        if case == "case2":
            return float(self.row_means.sum() / self.rows.sum())
        w = torch.ones(len(self.loss)) if case == "coba" else torch.tensor(weights, dtype=torch.float64)
        w = w * (self.tokens > 0)
        means = self.row_means / self.rows.clamp(min=1) if case == "case4" else self.loss / self.tokens.clamp(min=1)
        return float((w * means).sum() / w.sum())


def evaluate(model: ModelOnRanks, lines: Sequence[Line], tasks: int) -> TaskLosses:
    """The losses of lines of one sample each, dealt out over the devices, without dropout. tasks: how many there are."""
    sums = torch.zeros(4, tasks, dtype=torch.float64)
    was_training = model.model.training
    model.model.eval()
    with torch.no_grad():
        for chunk in micro_batches(lines, model.micro_batch, model.ranks, model.rank):
            batch = collate(chunk or lines[:1], [[1.0]] * len(chunk or lines[:1]), model.pad)
            found = label_losses(model, batch)
            if chunk is not None:
                sums += _sums(found, [line[0].task for line in chunk], tasks)
    model.model.train(was_training)
    return TaskLosses(*model.sum_over_ranks(sums))


def _sums(found: LabelLosses, task_of_line: Sequence[int], tasks: int) -> torch.Tensor:
    losses, lines = found.losses.double().cpu(), found.lines.cpu()
    of_lines = torch.tensor(task_of_line)
    line_loss = torch.zeros(len(of_lines), dtype=torch.float64).index_add_(0, lines, losses)
    line_tokens = torch.bincount(lines, minlength=len(of_lines)).double()
    means = line_loss / line_tokens.clamp(min=1)
    values = torch.stack([line_loss, line_tokens, means, (line_tokens > 0).double()])
    return torch.zeros(4, tasks, dtype=torch.float64).index_add_(1, of_lines, values)
