"""The loop: one update of the adapter after another, evaluations, the best adapter kept, early stopping, checkpoints."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qtk.errors import InputError, listing
from qtk.finetuning.batches import DataOrder, Line, collate, learnt_counts, micro_batches, shuffled
from qtk.finetuning.checkpoints import (
    Checkpoints,
    TrainingState,
    load_optimizer_tensors,
    optimizer_tensors,
)
from qtk.finetuning.coba import after_look, first_look
from qtk.finetuning.evaluation import ModelOnRanks, evaluate, label_losses
from qtk.finetuning.lora_model import adapter_tensors, learning_parameters, load_adapter_tensors
from qtk.finetuning.losses import sample_coefficients, weighted_loss
from qtk.finetuning.metrics import MetricsLog
from qtk.finetuning.options import FinetuneOptions
from qtk.finetuning.schedule import CosineSchedule, warmup_steps
from qtk.finetuning.sharding import whole
from qtk.finetuning.training_data import TrainingData
from qtk.progress import Progress, note

_RANKS = 1 << 12  # more than there are devices


@dataclass(frozen=True)
class _StepResult:
    loss: float
    tasks: list[float | None]
    gradient_norm: float
    tokens: int


class TrainingLoop:
    """A training: `run` does what is left of it. model: with its adapter, as accelerate prepared it; so the optimizer."""

    def __init__(
        self,
        model: ModelOnRanks,
        optimizer: torch.optim.Optimizer,
        data: TrainingData,
        options: FinetuneOptions,
        checkpoints: Checkpoints,
    ) -> None:
        self.model, self.optimizer, self.data, self.options = model, optimizer, data, options
        self.checkpoints = checkpoints
        self.order = DataOrder(len(data.train), options.batch_size, options.seed)
        self.steps = total_steps(data, options)
        self.schedule = CosineSchedule(
            self.steps, warmup_steps(options.warmup, self.steps), options.learning_rate, options.min_lr
        )
        self.first = model.rank == 0
        self.state = checkpoints.read() or TrainingState()
        self._bare = model.accelerator.unwrap_model(model.model)

    def run(self, metrics: MetricsLog | None) -> TrainingState:
        """Trains to the end, or until early stopping, and leaves the best adapter in the model. metrics: of the first rank.

        InputError when a loss or a gradient is not a number: it names the step and its rows, and the last checkpoint stays.
        """
        self._take_up()
        started, before, read = time.monotonic(), self.state.seconds, self.state.tokens
        self.model.model.train()
        with Progress("finetune", self.steps, "steps") as progress:
            progress.advance(self.state.step)
            if self.state.step == 0:
                self._look_before(metrics)
            while self.state.step < self.steps and not self._stalled():
                result = self._update(self.state.step)
                elapsed = time.monotonic() - started
                done = self.state.step + 1
                self.state = self.state.model_copy(
                    update={"step": done, "tokens": self.state.tokens + result.tokens, "seconds": before + elapsed}
                )
                speed = (self.state.tokens - read) / max(elapsed, 1e-9)
                if metrics is not None:
                    metrics.write(self._line(result, speed))
                self._look_at_tasks(done)
                if self.data.held_back and (done % self.options.evaluate_every == 0 or done == self.steps):
                    self._evaluate(metrics)
                if done % self.options.checkpoint_every == 0:
                    self._save()
                progress.advance(1, self._said(result, speed))
        if self._stalled() and self.state.step < self.steps:
            note(
                f"Stopped early at step {self.state.step} of {self.steps}: {self.state.stall} evaluations in a row were worse "
                f"than that of step {self.state.best_step}."
            )
        if self.state.best is not None:
            load_adapter_tensors(self._bare, self.checkpoints.load_best())
        return self.state

    def _take_up(self) -> None:
        """Goes on from the last checkpoint, where there is one."""
        if self.state.step:
            adapter, optimizer = self.checkpoints.load(self.state.step)
            load_adapter_tensors(self._bare, adapter)
            load_optimizer_tensors(self.optimizer, optimizer)
        self.model.accelerator.wait_for_everyone()

    def _stalled(self) -> bool:
        return 0 < self.options.early_stopping <= self.state.stall

    def _update(self, step: int) -> _StepResult:
        """One update. Its loss is normalised over all lines of the step, on whatever device they are."""
        options, model = self.options, self.model
        lines = [self.data.train[i] for i in self.order.step(step)]
        coefficients = self._coefficients(lines)
        rate = self.schedule.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        # Dropout follows from the step, so that a resumed run draws what the first one would have drawn.
        torch.manual_seed((options.seed * 1_000_003 + step) * _RANKS + model.rank)
        tasks = len(self.data.tasks)
        sums = torch.zeros(2, tasks + 1, dtype=torch.float64)
        turns = micro_batches(lines, model.micro_batch, model.ranks, model.rank)
        bad: list[Line] = []
        for number, chunk in enumerate(turns):
            taken = chunk or lines[:1]
            weights = [coefficients[line] if chunk else [0.0] * len(line) for line in taken]
            batch = collate(taken, weights, model.pad, across=options.pack_across)
            last = number == len(turns) - 1
            with contextlib.nullcontext() if last else model.own_gradients():
                found = label_losses(model, batch)
                loss = weighted_loss(found.losses, found.coefficients)
                # The gradients of the ranks are averaged, and theirs are parts of a sum.
                model.accelerator.backward(loss * model.ranks)
            losses, own = found.losses.detach().double().cpu(), found.tasks.cpu()
            sums[0, :tasks].index_add_(0, own, losses)
            sums[1, :tasks] += torch.bincount(own, minlength=tasks)
            sums[0, tasks] += loss.detach().double().cpu()
            sums[1, tasks] += batch.tokens if chunk else 0
            if not math.isfinite(float(loss.detach())):
                bad += taken
        sums = model.sum_over_ranks(sums)
        norm = self._clip()
        if not (math.isfinite(float(sums[0, tasks])) and math.isfinite(norm)):
            self._refuse_to_go_on(step, float(sums[0, tasks]), bad or lines)
        self.optimizer.step()
        by_task = [
            loss / count if count else None
            for loss, count in zip(sums[0, :tasks].tolist(), sums[1, :tasks].tolist(), strict=True)
        ]
        return _StepResult(float(sums[0, tasks]), by_task, norm, int(sums[1, tasks]))

    def _coefficients(self, lines: Sequence[Line]) -> dict[Line, list[float]]:
        """What each sample of each line counts in the loss of the step."""
        counts = [learnt_counts(line, across=self.options.pack_across) for line in lines]
        coba = self.state.coba
        case = "case3" if self.options.weighted_loss == "coba" else self.options.weighted_loss
        flat = iter(
            sample_coefficients(
                case,
                [count for own in counts for count in own],
                [sample.task for line in lines for sample in line],
                self.data.weights if coba is None else coba.weights,
            )
        )
        return {line: [next(flat) for _ in line] for line in lines}

    def _clip(self) -> float:
        parameters = learning_parameters(self.model.model).values()
        most = self.options.clip or math.inf
        return float(whole(self.model.accelerator.clip_grad_norm_(list(parameters), most)))

    def _refuse_to_go_on(self, step: int, loss: float, lines: Sequence[Line]) -> None:
        saved = self.checkpoints.read()
        kept = (
            f"The last checkpoint, of step {saved.step}, is an adapter in {self.checkpoints.path(saved.step)}."
            if saved is not None and saved.step
            else "There is no checkpoint yet (--checkpoint-every)."
        )
        what = f"The loss is {loss}" if not math.isfinite(loss) else "The gradient is not finite"
        raise InputError(
            f"{what} in step {step + 1}, so the training stops. These rows were read:\n"
            f"{listing(sample.row.where for line in lines for sample in line)}\n{kept} "
            "Begin again with a lower --learning-rate or a longer --warmup, or take the rows out."
        )

    def _look_before(self, metrics: MetricsLog | None) -> None:
        """The held-back losses of the base."""
        if not self.data.held_back:
            return
        losses = evaluate(self.model, self.data.held_back, len(self.data.tasks))
        overall = losses.overall(self.options.weighted_loss, self.data.weights)
        by_task = losses.by_task()
        coba = first_look(by_task) if self.options.weighted_loss == "coba" else None
        self.state = self.state.model_copy(update={"before": overall, "before_by_task": tuple(by_task), "coba": coba})
        if metrics is not None:
            metrics.write(self._held_back_line(overall, by_task))

    def _look_at_tasks(self, done: int) -> None:
        """CoBa's look at a few held-back rows, after which the tasks may have other weights."""
        coba, options = self.state.coba, self.options
        if coba is None or done % options.coba_update_interval:
            return
        rows, look = self.data.held_back, done // options.coba_update_interval - 1
        size = options.coba_sample_valid_num * options.micro_batch
        order = shuffled(len(rows), options.seed, 0)
        sample = [rows[order[(look * size + i) % len(rows)]] for i in range(min(size, len(rows)))]
        losses = evaluate(self.model, sample, len(self.data.tasks)).by_task()
        self.state = self.state.model_copy(update={"coba": after_look(coba, losses, done, options)})

    def _evaluate(self, metrics: MetricsLog | None) -> None:
        """An evaluation on all held-back rows. As good as the best counts as better, as in MFTCoder."""
        losses = evaluate(self.model, self.data.held_back, len(self.data.tasks))
        overall = losses.overall(self.options.weighted_loss, self.data.weights)
        by_task = losses.by_task()
        # NaN is not better than anything.
        if math.isfinite(overall) and (self.state.best is None or overall <= self.state.best):
            change: dict[str, Any] = {"best": overall, "best_step": self.state.step, "stall": 0}
            change["best_by_task"] = tuple(by_task)
            adapter = adapter_tensors(self._bare)
            if self.first:
                self.checkpoints.save_best(self._bare, adapter)
            self.model.accelerator.wait_for_everyone()
        else:
            change = {"stall": self.state.stall + 1}
        self.state = self.state.model_copy(update=change)
        if metrics is not None:
            metrics.write(self._held_back_line(overall, by_task))

    def _save(self) -> None:
        adapter, optimizer = adapter_tensors(self._bare), optimizer_tensors(self.optimizer)
        if self.first:
            self.checkpoints.save(self.state, self._bare, adapter, optimizer)

    def _line(self, result: _StepResult, speed: float) -> dict[str, Any]:
        line: dict[str, Any] = {
            "step": self.state.step,
            "epoch": round(self.state.step / self.order.steps_per_epoch, 4),
            "loss": result.loss,
            "tasks": dict(zip(self.data.names, result.tasks, strict=True)),
            "learning_rate": self.schedule.rate(self.state.step - 1),
            "gradient_norm": result.gradient_norm,
            "tokens": self.state.tokens,
            "tokens_per_second": round(speed, 1),
            "seconds": round(self.state.seconds, 2),
        }
        if self.state.coba is not None:
            line["task_weights"] = dict(zip(self.data.names, self.state.coba.weights, strict=True))
        return line

    def _held_back_line(self, overall: float, by_task: Sequence[float | None]) -> dict[str, Any]:
        return {
            "step": self.state.step,
            "held_back": overall,
            "tasks": dict(zip(self.data.names, by_task, strict=True)),
            "best_step": self.state.best_step,
        }

    def _said(self, result: _StepResult, speed: float) -> str:
        several = zip(self.data.names, result.tasks, strict=True) if len(self.data.names) > 1 else ()
        tasks = "".join(f", {name} {loss:.3f}" for name, loss in several if loss is not None)
        held_back = f", held back {self.state.best:.3f} at best" if self.state.best is not None else ""
        return f"loss {result.loss:.3f}{tasks}{held_back}, {speed:.0f} tokens/s"


def total_steps(data: TrainingData, options: FinetuneOptions) -> int:
    """The updates of a whole training."""
    all_of_them = options.epochs * DataOrder(len(data.train), options.batch_size, options.seed).steps_per_epoch
    return min(all_of_them, options.max_steps or all_of_them)
