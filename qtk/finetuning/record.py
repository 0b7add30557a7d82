"""What a training did: the result of `qtk finetune`, and training.json beside the adapter. Loads no torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from qtk.adapters.trained_base import RECORD_NAME, TrainedBase
from qtk.finetuning.options import FinetuneOptions


class TaskRows(BaseModel):
    """How many rows a task has: in its files, dropped because they are longer than the limit, and in each part."""

    model_config = ConfigDict(frozen=True)

    name: str
    rows: int
    dropped: int
    train: int
    held_back: int
    test: int
    learnt_tokens: int


class TaskResult(TaskRows):
    """A task: its rows, and its mean losses in nats a token on rows that were not trained on."""

    loss_before: float | None = None
    loss: float | None = None
    test_loss: float | None = None


class FinetuneReport(BaseModel):
    """A finished training. Losses are in nats, by the case of `weighted_loss`: on the held-back rows before training and with
    the adapter that was kept (of step `best_step`), and on the test rows. parameters: that learnt. tokens: read, padding
    included. dtype: of the products. Memory in bytes."""

    model_config = ConfigDict(frozen=True)

    output: str
    base: TrainedBase
    options: FinetuneOptions
    tasks: list[TaskResult]
    seq_len: int
    lines: int
    steps: int
    planned_steps: int
    best_step: int
    stopped_early: bool
    loss_before: float | None
    loss: float | None
    test_loss: float | None
    parameters: int
    tokens: int
    tokens_per_second: float
    devices: int
    dtype: str
    seconds: float
    peak_memory_bytes: int
    packages: dict[str, str]


def write_record(report: FinetuneReport, directory: Path) -> None:
    """Writes training.json. Where the directory lies is no part of it."""
    text = report.model_copy(update={"output": "."}).model_dump_json(indent=2)
    (directory / RECORD_NAME).write_text(text + "\n", encoding="utf-8")


def read_record(directory: Path) -> FinetuneReport | None:
    """The record beside an adapter that qtk trained; None where there is none, or another version wrote it."""
    try:
        return FinetuneReport.model_validate_json((directory / RECORD_NAME).read_bytes())
    except (OSError, ValueError):
        return None
