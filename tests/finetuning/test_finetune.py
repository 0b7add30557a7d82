"""Trainings of a tiny model: what they write, what they do not depend on, and how they go on after a stop."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from support.peft_adapters import load_model, peft_model

from qtk.adapters.merge import merge
from qtk.adapters.options import MergeOptions
from qtk.checkpoint.manifest import read_manifest, verify_chain
from qtk.finetuning.metrics import read_metrics
from qtk.finetuning.record import read_record

SLOW = partial(pytest.param, marks=pytest.mark.slow)


def test_an_adapter_learns_is_loaded_by_peft_and_merged(train, tiny, tmp_path: Path) -> None:
    report = train("adapter", epochs=20, data_split="60,20,20")
    assert report.loss is not None
    assert report.loss_before is not None
    assert report.loss < 0.8 * report.loss_before
    assert [(task.name, task.train, task.held_back, task.test) for task in report.tasks] == [
        ("add", 6, 2, 2),
        ("spell", 3, 1, 1),
    ]
    assert all(task.test_loss is not None and task.loss is not None for task in report.tasks)
    record = read_record(tmp_path / "adapter")
    assert record is not None
    assert record.tasks == report.tasks

    ids = torch.arange(20, 60)[None]
    apart = peft_model(tiny("llama"), tmp_path / "adapter", dtype=torch.float32)(ids).logits
    plain = load_model(tiny("llama"), dtype=torch.float32)(ids).logits
    assert (apart - plain).abs().max() > 0.5
    merge(tiny("llama"), [tmp_path / "adapter"], tmp_path / "merged", MergeOptions())
    merged = load_model(tmp_path / "merged", dtype=torch.float32)(ids).logits
    assert (apart - merged).abs().max() < 0.1 * (apart - plain).abs().max()


def test_the_manifest_records_base_and_data(train, tmp_path: Path, two_tasks) -> None:
    train("adapter")
    manifest = read_manifest(tmp_path / "adapter")
    assert manifest.kind == "trained-adapter"
    assert [record.role for record in manifest.inputs] == ["base", "data", "data"]
    assert [list(record.files) for record in manifest.inputs[1:]] == [["add.jsonl"], ["spell.jsonl"]]
    assert {"adapter_config.json", "adapter_model.safetensors", "metrics.jsonl", "training.json"} <= set(
        manifest.outputs
    )
    assert not [finding for finding in verify_chain(tmp_path / "adapter") if finding.bad]
    assert not list(tmp_path.glob("adapter/.training"))
    host = os.uname().nodename
    assert not [path for path in (tmp_path / "adapter").rglob("*") if host in path.name]


def test_the_metrics_have_each_step_and_each_evaluation(train, tmp_path: Path) -> None:
    report = train("adapter", evaluate_every=2)
    lines = read_metrics(tmp_path / "adapter")
    steps = [line for line in lines if "loss" in line]
    looks = [line for line in lines if "held_back" in line]
    assert [line["step"] for line in steps] == list(range(1, report.steps + 1))
    assert [line["step"] for line in looks] == [0, 2, 4, 6]
    assert set(steps[0]["tasks"]) == {"add", "spell"}
    assert steps[0]["tokens"] > 0
    assert min(line["held_back"] for line in looks[1:]) == report.loss


@pytest.mark.parametrize("case", [SLOW("case1"), SLOW("case2"), "case3", SLOW("case4")])
def test_results_do_not_depend_on_the_micro_batch(train, adapter_of, tmp_path: Path, case: str) -> None:
    for size in (1, 4):
        train(f"by-{size}", micro_batch=size, weighted_loss=case, batch_size=5)
    one, four = adapter_of(tmp_path / "by-1"), adapter_of(tmp_path / "by-4")
    for name in one:
        torch.testing.assert_close(one[name], four[name], rtol=1e-3, atol=1e-5)
    assert read_metrics(tmp_path / "by-1")[1]["loss"] == pytest.approx(
        read_metrics(tmp_path / "by-4")[1]["loss"], rel=1e-5
    )


@pytest.mark.parametrize("variant", ["llama", "mistral-window", SLOW("qwen2"), SLOW("qwen3")])
def test_rows_in_packs_learn_what_they_learn_alone(train, tiny, adapter_of, tmp_path: Path, variant: str) -> None:
    """All rows in one step, in packs or each in its own line: the same update, because packs do not see each other."""
    settings = {"batch_size": 12, "epochs": 1, "data_split": "100,0,0", "base": tiny(variant), "seq_len": 256}
    train("alone", **{**settings, "batch_size": 15})
    report = train("packed", padding="pack", **settings)
    assert report.lines < 12
    alone, packed = adapter_of(tmp_path / "alone"), adapter_of(tmp_path / "packed")
    assert read_metrics(tmp_path / "alone")[0]["loss"] == pytest.approx(
        read_metrics(tmp_path / "packed")[0]["loss"], rel=1e-5
    )
    for name in alone:
        torch.testing.assert_close(alone[name], packed[name], rtol=1e-2, atol=2e-5)
    train("across", padding="pack", pack_across=True, **settings)
    across = read_metrics(tmp_path / "across")[0]["loss"]
    assert across != pytest.approx(read_metrics(tmp_path / "packed")[0]["loss"], rel=1e-4)


def test_the_same_options_give_the_same_bits(train, adapter_of, tmp_path: Path) -> None:
    for name in ("one", "two"):
        train(name, dropout=0.1)
    one, two = adapter_of(tmp_path / "one"), adapter_of(tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)
    train("other", dropout=0.1, seed=1)
    other = adapter_of(tmp_path / "other")
    assert not any(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("loss", [SLOW("case3"), "coba"])
def test_a_training_that_is_stopped_goes_on_to_the_same_bits(train, adapter_of, tmp_path: Path, loss: str) -> None:
    settings = {"epochs": 5, "dropout": 0.1, "checkpoint_every": 3, "evaluate_every": 4, "weighted_loss": loss}
    settings |= {"coba_warmup_steps": 4, "coba_history_length": 8}
    whole = train("whole", **settings)
    state = tmp_path / "stopped.partial" / ".training" / "state.json"

    def stop() -> None:
        while not (state.is_file() and json.loads(state.read_bytes())["step"] >= 3):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        train("stopped", **settings)
    assert 3 <= json.loads(state.read_bytes())["step"] < whole.steps
    resumed = train("stopped", resume=True, **settings)
    assert (resumed.steps, resumed.best_step, resumed.loss) == (whole.steps, whole.best_step, whole.loss)
    first, second = adapter_of(tmp_path / "whole"), adapter_of(tmp_path / "stopped")
    assert all(torch.equal(first[name], second[name]) for name in first)
    timed = {"tokens_per_second", "seconds"}
    lines = [
        [{key: value for key, value in line.items() if key not in timed} for line in read_metrics(tmp_path / name)]
        for name in ("whole", "stopped")
    ]
    assert lines[0] == lines[1]


def test_early_stopping_keeps_the_best_adapter(train, adapter_of, tmp_path: Path) -> None:
    """A learning rate that is far too high makes the held-back loss worse after the first steps."""
    settings = {"learning_rate": 0.2, "warmup": 0, "min_lr": 0.2, "evaluate_every": 1}
    report = train("stopped", epochs=30, early_stopping=3, **settings)
    assert report.stopped_early
    assert report.steps == report.best_step + 3
    losses = {line["step"]: line["held_back"] for line in read_metrics(tmp_path / "stopped") if "held_back" in line}
    assert report.loss == losses[report.best_step] == min(loss for step, loss in losses.items() if step)
    # The adapter is that of the best step: a training that ends there has the same one.
    train("short", epochs=30, early_stopping=0, max_steps=report.best_step, **settings)
    best, short = adapter_of(tmp_path / "stopped"), adapter_of(tmp_path / "short")
    assert all(torch.equal(best[name], short[name]) for name in best)


@pytest.mark.parametrize(
    "changes", [SLOW({"rslora": True}), {"dora": True}, SLOW({"target_modules": ("q_proj", "down_proj")})]
)
def test_kinds_of_adapters_are_merged_as_peft_runs_them(
    train, tiny, tmp_path: Path, changes: dict[str, object]
) -> None:
    train("adapter", epochs=6, **changes)
    ids = torch.arange(20, 60)[None]
    apart = peft_model(tiny("llama"), tmp_path / "adapter", dtype=torch.float32)(ids).logits
    result = merge(tiny("llama"), [tmp_path / "adapter"], tmp_path / "merged", MergeOptions())
    merged = load_model(tmp_path / "merged", dtype=torch.float32)(ids).logits
    plain = load_model(tiny("llama"), dtype=torch.float32)(ids).logits
    assert (apart - merged).abs().max() < 0.2 * (apart - plain).abs().max()
    assert result.tensors_changed == (2 if "target_modules" in changes else 7) * 3


def test_bfloat16_and_checkpointed_activations_train_too(train, monkeypatch) -> None:
    plain = train("plain")
    checkpointed = train("checkpointed", gradient_checkpointing=True)
    assert checkpointed.loss == pytest.approx(plain.loss, rel=1e-5)
    monkeypatch.setenv("QTK_COMPUTE_DTYPE", "bfloat16")
    lower = train("lower")
    assert lower.dtype == "bfloat16"
    assert lower.loss == pytest.approx(plain.loss, rel=0.05)
