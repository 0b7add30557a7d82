"""The data of a training: tasks read, encoded, held to the length limit, split, and laid out in lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qtk.errors import InputError, listing
from qtk.finetuning.batches import Line, TrainingSample, pack, shuffled, split_rows
from qtk.finetuning.chat_encoding import EncodedRow, encode_rows
from qtk.finetuning.options import FinetuneOptions, split_shares
from qtk.finetuning.record import TaskRows
from qtk.finetuning.rows import TrainingTask, read_tasks
from qtk.models.tokenizer import TextTokenizer
from qtk.progress import note
from qtk.wording import counted

_LONGEST_BY_DEFAULT = 4096


@dataclass(frozen=True)
class TrainingData:
    """train: lines of one sample, or packs. held_back, test: lines of one sample. files: of each task, by its name."""

    tasks: tuple[TaskRows, ...]
    weights: tuple[float, ...]
    train: tuple[Line, ...]
    held_back: tuple[Line, ...]
    test: tuple[Line, ...]
    files: dict[str, tuple[Path, ...]]
    seq_len: int
    pad: int

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)


def row_length(options: FinetuneOptions, context: int) -> int:
    """Tokens in a row. InputError when more were asked for than the model's context has."""
    if options.seq_len is None:
        return min(_LONGEST_BY_DEFAULT, context)
    if options.seq_len > context:
        raise InputError(f"--seq-len {options.seq_len} is longer than the model's context of {context} tokens.")
    return options.seq_len


def training_data(tokenizer: TextTokenizer, options: FinetuneOptions, context: int) -> TrainingData:
    """Reads and prepares the data of the options.

    InputError for data that cannot be read (all bad rows named), for a task of which nothing is left under the length limit,
    and for a task too small for the parts it is to have.
    """
    if not options.data:
        raise InputError("There is no data: give --data FILE or --data FOLDER, once for each task.")
    seq_len = row_length(options, context)
    tasks = read_tasks(options.data)
    longest = seq_len + 1  # the last token is only ever predicted
    encoded = [encode_rows(tokenizer, task.rows, options.chat_format, longest) for task in tasks]
    kept = [[row for row in rows if len(row) <= longest] for rows in encoded]
    _require_rows(tasks, kept, seq_len)
    parts = [split_rows(rows, split_shares(options.data_split), options.seed) for rows in kept]
    _require_parts(tasks, [len(part.valid) for part in parts], options)
    train = [TrainingSample(row, task) for task, part in enumerate(parts) for row in part.train]
    lines: Sequence[Line] = [(sample,) for sample in train]
    if options.padding == "pack":
        lines = pack([train[i] for i in shuffled(len(train), options.seed, 0)], longest)
    return TrainingData(
        tasks=tuple(
            TaskRows(
                name=task.name,
                rows=len(task.rows),
                dropped=len(task.rows) - len(rows),
                train=len(part.train),
                held_back=len(part.valid),
                test=len(part.test),
                learnt_tokens=sum(int(row.learnt[1:].sum()) for row in part.train),
            )
            for task, rows, part in zip(tasks, kept, parts, strict=True)
        ),
        weights=options.task_weight or (1.0,) * len(tasks),
        train=tuple(lines),
        held_back=_lines([part.valid[: options.evaluation_rows] for part in parts]),
        test=_lines([part.test for part in parts]),
        files={task.name: task.files for task in tasks},
        seq_len=seq_len,
        pad=tokenizer.end_id or 0,
    )


def _lines(rows_of_tasks: Sequence[Sequence[EncodedRow]]) -> tuple[Line, ...]:
    return tuple((TrainingSample(row, task),) for task, rows in enumerate(rows_of_tasks) for row in rows)


def _require_rows(tasks: Sequence[TrainingTask], kept: Sequence[Sequence[EncodedRow]], seq_len: int) -> None:
    """InputError where the limit leaves a task nothing; a note of what it drops otherwise."""
    dropped = [
        f"{task.name}: {len(task.rows) - len(rows)} of {counted(len(task.rows), 'row')}"
        for task, rows in zip(tasks, kept, strict=True)
        if len(rows) < len(task.rows)
    ]
    if not all(kept):
        raise InputError(
            f"No rows are left of a task, because they are longer than {seq_len} tokens (--seq-len). Dropped are\n"
            f"{listing(dropped)}\nGive a larger --seq-len, or cut the rows."
        )
    if dropped:
        note(f"Rows longer than {seq_len} tokens are dropped: {'; '.join(dropped)}.")


def _require_parts(tasks: Sequence[TrainingTask], held_back: Sequence[int], options: FinetuneOptions) -> None:
    without = [task.name for task, count in zip(tasks, held_back, strict=True) if not count]
    if without and split_shares(options.data_split)[1] > 0:
        raise InputError(
            f"No row can be held back of {', '.join(without)}, because too few are left for it. Add rows to the task, or train "
            "without held-back rows: --data-split 100,0,0."
        )
