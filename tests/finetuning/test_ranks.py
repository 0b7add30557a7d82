"""Two processes on this machine, joined by gloo, train what one process trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from qtk.checkpoint.manifest import verify_chain
from qtk.errors import InputError
from qtk.finetuning.metrics import read_metrics

ONE = (sys.executable, "-m", "qtk")
TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "qtk")

OPTIONS = (
    "--chat-format codefuse --seq-len 64 --data-split 80,20,0 --batch-size 5 --micro-batch 2 --epochs 2 --rank 4 --alpha 8 "
    "--dropout 0 --learning-rate 5e-3 --weighted-loss case3 --evaluate-every 2"
)


def command(launcher: tuple[str, ...], base: Path, data: tuple[str, ...], out: Path) -> list[str]:
    """A training with five lines in a step: of two processes one sits out the last turn."""
    words = [*launcher, "finetune", str(base), "-o", str(out), "--device", "cpu", "--threads", "1"]
    return words + [word for task in data for word in ("--data", task)] + OPTIONS.split()


def environment() -> dict[str, str]:
    return {**os.environ, "QTK_COMPUTE_DTYPE": "float32", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def trained(words: list[str], *more: str) -> None:
    done = subprocess.run([*words, *more], env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def of_tasks(line: dict) -> dict[str, float]:
    """The losses of the tasks that a step had rows of."""
    return {task: loss for task, loss in line["tasks"].items() if loss is not None}


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--shard",)], ids=["ddp", "fsdp"])
def test_two_processes_train_what_one_does(tiny, two_tasks, adapter_of, tmp_path: Path, more: tuple[str, ...]) -> None:
    base = tiny("llama")
    trained(command(ONE, base, two_tasks, tmp_path / "one"))
    trained(command(TWO, base, two_tasks, tmp_path / "two"), *more)
    one, two = adapter_of(tmp_path / "one"), adapter_of(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, wanted in one.items():
        torch.testing.assert_close(two[name], wanted, rtol=1e-4, atol=1e-5)
    assert any(wanted.abs().max() > 0.01 for name, wanted in one.items() if "lora_B" in name)

    alone, together = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    assert [line["step"] for line in together] == [line["step"] for line in alone]
    for mine, theirs in zip(alone, together, strict=True):
        loss = "loss" if "loss" in mine else "held_back"
        assert theirs[loss] == pytest.approx(mine[loss], rel=1e-4)
        assert of_tasks(theirs) == pytest.approx(of_tasks(mine), rel=1e-4)
    assert not [finding for finding in verify_chain(tmp_path / "two") if finding.bad]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_training_of_spread_weights_goes_on_to_the_same_bits(
    tiny, two_tasks, adapter_of, tmp_path: Path
) -> None:
    more = ("--shard", "--checkpoint-every", "1", "--dropout", "0.1")
    whole, stopped = (command(TWO, tiny("llama"), two_tasks, tmp_path / name) for name in ("whole", "stopped"))
    trained(whole, *more)
    process = subprocess.Popen([*stopped, *more], env=environment(), stderr=subprocess.DEVNULL)
    state = tmp_path / "stopped.partial" / ".training" / "state.json"
    while not (state.is_file() and json.loads(state.read_bytes())["step"] >= 2):
        assert process.poll() is None
        time.sleep(0.01)
    # The launcher's processes are sessions of their own.
    for other in psutil.Process(process.pid).children(recursive=True):
        other.kill()
    process.kill()
    process.wait()
    trained(stopped, *more, "--resume")
    first, second = adapter_of(tmp_path / "whole"), adapter_of(tmp_path / "stopped")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_one_process_has_nothing_to_spread_weights_over(train) -> None:
    with pytest.raises(InputError, match="torchrun"):
        train("adapter", shard=True)
