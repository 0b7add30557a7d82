"""The course of a training, as it is read again."""

from __future__ import annotations

import threading

import pytest

from qtk.finetuning.metrics import TENSORBOARD, MetricsLog, read_metrics


def test_tensorboard_reads_the_same_scalars_and_no_thread_writes_them(tmp_path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    before = threading.active_count()
    for begin in (0, 2):  # the second session goes on after step 2
        log = MetricsLog(tmp_path, step=begin)
        for step in range(begin + 1, begin + 4):
            log.write(
                {"step": step, "loss": 1 / step, "rate": 1e-4, "seconds": 3.0, "tasks": {"code": 0.5, "none": None}}
            )
        assert threading.active_count() == before
        log.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    found = accumulators.EventAccumulator(str(tmp_path / TENSORBOARD)).Reload()
    assert sorted(found.Tags()["scalars"]) == ["all/rate", "all/train", "code/train"]
    losses = [(event.step, event.value) for event in found.Scalars("all/train")]
    assert losses == [(step, pytest.approx(1 / step)) for step in range(1, 6)]
