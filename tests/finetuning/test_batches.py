"""Splits, packs, orders and the tensors of a micro-batch, against expectations written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from qtk.finetuning.batches import (
    DataOrder,
    TrainingSample,
    collate,
    learnt_counts,
    micro_batches,
    pack,
    split_rows,
)
from qtk.finetuning.chat_encoding import EncodedRow
from qtk.finetuning.options import split_shares


def sample(ids: list[int], learnt: list[int], task: int = 0) -> TrainingSample:
    return TrainingSample(EncodedRow("f", np.array(ids, np.int32), np.array(learnt, bool)), task)


def rows(count: int) -> list[EncodedRow]:
    return [EncodedRow(f"line {i}", np.array([i], np.int32), np.array([True])) for i in range(count)]


def test_shares_are_what_they_say() -> None:
    assert split_shares("80,10,10") == (0.8, 0.1, 0.1)
    assert split_shares("0.98/0.02") == (0.98, 0.02, 0.0)
    assert split_shares("3,1") == (0.75, 0.25, 0.0)


@pytest.mark.parametrize("text", ["", "100", "a,b", "-1,2", "0,100,0", "1,2,3,4", "inf,1", "nan,1"])
def test_what_is_not_a_split_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="give the shares"):
        split_shares(text)


def test_a_split_holds_its_test_rows_back_and_depends_on_the_seed_alone() -> None:
    parts = split_rows(rows(50), split_shares("80,10,10"), seed=3)
    assert [len(parts.train), len(parts.valid), len(parts.test)] == [40, 5, 5]
    assert sorted(row.where for part in (parts.train, parts.valid, parts.test) for row in part) == sorted(
        row.where for row in rows(50)
    )
    again = split_rows(rows(50), split_shares("80,10,10"), seed=3)
    assert [row.where for row in again.valid] == [row.where for row in parts.valid]
    other = split_rows(rows(50), split_shares("80,10,10"), seed=4)
    assert [row.where for row in other.valid] != [row.where for row in parts.valid]


def test_a_small_task_still_has_a_held_back_row() -> None:
    assert len(split_rows(rows(10), split_shares("98,2,0"), seed=0).valid) == 1
    assert len(split_rows(rows(10), split_shares("100,0,0"), seed=0).valid) == 0
    assert len(split_rows(rows(1), split_shares("98,2,0"), seed=0).train) == 1


def test_packs_lose_and_cut_nothing() -> None:
    samples = [sample([i] * n, [1] * n) for i, n in enumerate((3, 4, 2, 7, 1))]
    assert [[len(s) for s in line] for line in pack(samples, 7)] == [[3, 4], [2], [7], [1]]
    assert pack([], 7) == []


def test_an_epoch_reads_every_line_once_and_the_order_follows_from_the_seed() -> None:
    order = DataOrder(lines=7, batch_size=3, seed=5)
    assert order.steps_per_epoch == 3
    epochs = [[line for number in range(start, start + 3) for line in order.step(number)] for start in (0, 3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert DataOrder(lines=7, batch_size=3, seed=5).step(4) == order.step(4)


def test_ranks_share_a_step_in_equally_many_turns() -> None:
    lines = [(sample([0] * n, [1] * n),) for n in (5, 1, 4, 2, 3)]
    shares = [micro_batches(lines, 2, ranks=2, rank=rank) for rank in (0, 1)]
    assert [[[len(line[0]) for line in chunk] if chunk else None for chunk in share] for share in shares] == [
        [[1, 2], [5]],
        [[3, 4], None],
    ]


def test_dynamic_padding_ends_with_the_last_learnt_token() -> None:
    lines = [(sample([5, 6, 7, 8], [0, 0, 1, 0], task=1),), (sample([3, 4], [0, 1]),)]
    batch = collate(lines, [[0.5], [0.25]], pad=9)
    assert batch.ids.tolist() == [[5, 6], [3, 9]]
    assert batch.labels.tolist() == [[6, 7], [4, 0]]
    assert batch.coefficients.tolist() == [[0, 0.5], [0.25, 0]]
    assert batch.tasks.tolist() == [[1, 1], [0, 0]]
    assert batch.positions is None


def test_the_samples_of_a_pack_start_anew() -> None:
    line = (sample([1, 2, 3], [1, 1, 1], task=0), sample([4, 5], [1, 1], task=1))
    batch = collate([line, (sample([6, 7], [0, 1]),)], [[0.5, 2.0], [4.0]], pad=0)
    assert batch.ids.tolist() == [[1, 2, 3, 4], [6, 0, 0, 0]]
    assert batch.labels.tolist() == [[2, 3, 4, 5], [7, 0, 0, 0]]
    # The 4 is the first token of its sample: what stands before it says nothing about it.
    assert batch.coefficients.tolist() == [[0.5, 0.5, 0, 2.0], [4.0, 0, 0, 0]]
    assert batch.tasks.tolist()[0] == [0, 0, 1, 1]
    assert batch.positions is not None
    assert batch.positions.tolist() == [[0, 1, 2, 0], [0, 1, 2, 3]]
    assert learnt_counts(line, across=False) == [2, 1]


def test_across_a_pack_as_mftcoder_has_it() -> None:
    line = (sample([1, 2, 3], [1, 1, 1]), sample([4, 5], [1, 1]))
    batch = collate([line], [[1.0, 2.0]], pad=0, across=True)
    assert batch.positions is None
    assert batch.coefficients.tolist() == [[1.0, 1.0, 2.0, 2.0]]
    assert learnt_counts(line, across=True) == [2, 2]
