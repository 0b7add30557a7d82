"""Bad input through the real command line: one sentence, the right exit code, nothing under the final name, nothing lost."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qtk.calibration.options import CalibrationOptions
from qtk.quantization.options import QuantizeOptions
from qtk.quantization.quantize import quantize_model

RTN = ("--method", "rtn", "--group-size", "32")


@pytest.fixture
def model(tiny, tmp_path) -> Path:
    """A tiny model to be damaged."""
    return Path(shutil.copytree(tiny("llama"), tmp_path / "model"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, make_tiny) -> Path:
    return make_tiny(tmp_path_factory.mktemp("sharded") / "model", "llama", shard_size="300KB")


def refused(result: subprocess.CompletedProcess, code: int, out: Path, *phrases: str, begun: bool = False) -> None:
    """The result is an error of that exit code that says every phrase, and left nothing behind.

    begun: blocks may have been finished before, which stay beside `out` for --resume, never under its name.
    """
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    last = result.stderr[result.stderr.rindex("qtk: ") :]
    assert "Traceback" not in result.stderr
    for phrase in phrases:
        assert phrase in last
    assert not out.exists()
    assert begun or not out.with_name(out.name + ".partial").exists()
    assert begun or not out.with_name(f".{out.name}.qtk-lock").exists()


def quantize_rtn(model: Path, out: Path) -> None:
    """What a good call of the command would write."""
    quantize_model(model, out, QuantizeOptions(method="rtn", group_size=32), CalibrationOptions())


def test_a_file_where_a_directory_is_needed(run_qtk, tmp_path) -> None:
    (tmp_path / "model").write_text("no directory")
    out = tmp_path / "out"
    refused(run_qtk("quantize", tmp_path / "model", "-o", out, *RTN), 2, out, "is not a directory")


def test_no_config(run_qtk, model, tmp_path) -> None:
    (model / "config.json").unlink()
    refused(run_qtk("quantize", model, "-o", tmp_path / "out", *RTN), 2, tmp_path / "out", "config.json is missing")


def test_broken_config(run_qtk, model, tmp_path) -> None:
    (model / "config.json").write_text('{"architectures": [')
    result = run_qtk("quantize", model, "-o", tmp_path / "out", *RTN)
    refused(result, 2, tmp_path / "out", "config.json is not valid JSON", "line 1 column")


def test_all_missing_shards_are_named(run_qtk, sharded, tmp_path) -> None:
    model = Path(shutil.copytree(sharded, tmp_path / "model"))
    shards = sorted(model.glob("*.safetensors"))
    assert len(shards) >= 3
    for shard in shards[:2]:
        shard.unlink()
    result = run_qtk("quantize", model, "-o", tmp_path / "out", *RTN)
    refused(result, 2, tmp_path / "out", f"2 of {len(shards)} shards are missing", shards[0].name, shards[1].name)


def test_truncated_shard(run_qtk, model, tmp_path) -> None:
    weights = model / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1000)
    result = run_qtk("quantize", model, "-o", tmp_path / "out", *RTN)
    refused(result, 2, tmp_path / "out", "model.safetensors is truncated", "Copy or download it again")


def test_no_safetensors_inside(run_qtk, model, tmp_path) -> None:
    (model / "model.safetensors").write_text("<html>404 Not Found</html>" * 40)
    result = run_qtk("quantize", model, "-o", tmp_path / "out", *RTN)
    refused(result, 2, tmp_path / "out", "is not a safetensors file")


class _Burglar:
    """Unpickling it makes a directory."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_a_pickle_is_refused_and_never_loaded(run_qtk, model, tmp_path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(_Burglar(str(tmp_path / "broken-in"))))
    result = run_qtk("quantize", model, "-o", tmp_path / "out", *RTN)
    refused(result, 2, tmp_path / "out", "pytorch_model.bin", "never opens one", "save_pretrained")
    assert not (tmp_path / "broken-in").exists()


def test_an_index_that_leads_outside(run_qtk, sharded, tmp_path) -> None:
    model = Path(shutil.copytree(sharded, tmp_path / "model"))
    path = model / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    names = list(index["weight_map"])
    index["weight_map"][names[0]] = "../elsewhere.safetensors"
    index["weight_map"][names[1]] = "/etc/passwd"
    path.write_text(json.dumps(index))
    result = run_qtk("quantize", model, "-o", tmp_path / "out", *RTN)
    refused(result, 2, tmp_path / "out", "files outside its directory", "'../elsewhere.safetensors'", "'/etc/passwd'")


def test_nan_and_inf_name_their_tensor(run_qtk, model, tmp_path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(model / "model.safetensors")
    tensors[name][3, 5], tensors[name][4, 0] = float("nan"), float("-inf")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    result = run_qtk("quantize", model, "-o", tmp_path / "out", *RTN)
    refused(result, 2, tmp_path / "out", name, "holds 2 NaN or Inf", begun=True)


def test_unknown_architecture_lists_the_known(run_qtk, model, tmp_path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["GPTNeoXForCausalLM"]}))
    result = run_qtk("quantize", model, "-o", tmp_path / "out", *RTN)
    known = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
    refused(result, 2, tmp_path / "out", "GPTNeoXForCausalLM", *known)


def test_an_adapter_for_other_shapes(run_qtk, model, tmp_path, make_tiny) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    other = make_tiny(tmp_path / "other", "llama", hidden_size=64, intermediate_size=96)
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(other), LoraConfig(r=4, target_modules=["up_proj"]))
    peft.save_pretrained(tmp_path / "adapter")
    result = run_qtk("merge", model, tmp_path / "adapter", "-o", tmp_path / "out", "--any-base")
    refused(result, 2, tmp_path / "out", "layers.{0-2}.mlp.up_proj.lora_A", "layers.{0-2}.mlp.up_proj.lora_B")


def test_empty_calibration_file(run_qtk, tiny, tmp_path) -> None:
    (tmp_path / "empty.txt").write_text("")
    result = run_qtk(
        "quantize", tiny(), "-o", tmp_path / "out", "--calibration", tmp_path / "empty.txt", "--seq-len", 64
    )
    refused(result, 2, tmp_path / "out", "empty.txt holds no calibration text")


def test_a_calibration_row_that_is_no_json(run_qtk, tiny, tmp_path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "def f(): pass"}\n\n{"text": "unfinished\n')
    result = run_qtk("quantize", tiny(), "-o", tmp_path / "out", "--calibration", rows, "--seq-len", 64)
    refused(result, 2, tmp_path / "out", f"{rows}, line 3 is not valid JSON")


def test_every_linear_that_the_group_does_not_divide_is_named(run_qtk, tmp_path, make_tiny) -> None:
    model = make_tiny(tmp_path / "model", "llama", intermediate_size=96)
    result = run_qtk("quantize", model, "-o", tmp_path / "out", "--method", "rtn", "--group-size", 64)
    refused(result, 2, tmp_path / "out", "model.layers.{0-2}.mlp.down_proj", "--group-size 32")


def test_an_existing_output_is_kept(run_qtk, tiny, model, tmp_path) -> None:
    out = tmp_path / "out"
    quantize_rtn(tiny(), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    again = run_qtk("quantize", tiny(), "-o", out, *RTN)
    assert again.returncode == 2
    assert "exists already" in again.stderr
    os.truncate(model / "model.safetensors", 5000)
    failed = run_qtk("quantize", model, "-o", out, *RTN, "--overwrite")  # and a failing --overwrite loses nothing
    assert failed.returncode == 2
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]
    replaced = run_qtk("quantize", tiny(), "-o", out, "--method", "rtn", "--group-size", 64, "--overwrite")
    assert replaced.returncode == 0
    assert json.loads((out / "config.json").read_text())["quantization_config"]["group_size"] == 64
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_overwrite_never_replaces_what_qtk_did_not_write(run_qtk, tiny, tmp_path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    result = run_qtk("quantize", tiny(), "-o", home, *RTN, "--overwrite")
    assert result.returncode == 2
    assert "was not written by qtk" in result.stderr
    assert (home / "thesis.tex").read_text() == "years of work"


def test_wrong_options_are_all_named(run_qtk, tiny, tmp_path) -> None:
    result = run_qtk("quantize", tiny(), "-o", tmp_path / "out", "--bits", 3, "--group-size", 7, "--samples", 0)
    refused(result, 2, tmp_path / "out", "--bits", "--group-size", "--samples")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[object]:
    """small_disk(bytes) -> a directory on a disk of that size; skips where none can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def mount(size: int) -> Path:
        nonlocal mounted
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        try:
            mounted = subprocess.run(command, capture_output=True).returncode == 0
        except OSError:
            mounted = False
        if not mounted:
            pytest.skip("mounting a small disk needs root")
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_without_room_is_found_before_the_work(run_qtk, tiny, small_disk) -> None:
    out = small_disk(64 * 1024) / "out"
    refused(run_qtk("quantize", tiny(), "-o", out, *RTN), 4, out, "the output takes", "free. Free some room")
    assert list(out.parent.iterdir()) == []


def test_a_disk_that_fills_up_during_the_work(run_qtk, tiny, tmp_path, small_disk) -> None:
    quantize_rtn(tiny(), tmp_path / "first")
    weights = (tmp_path / "first" / "model.safetensors").stat().st_size
    # Room for the weights and two pages: not for the tokenizer, the log and the manifest that come after them.
    out = small_disk((weights + 4095) // 4096 * 4096 + 8192) / "out"
    refused(run_qtk("quantize", tiny(), "-o", out, *RTN), 4, out, "disk is full", begun=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path, number: signal.Signals, make_tiny, write_byte_tokenizer) -> None:
    model = make_tiny(tmp_path / "model", "llama", num_hidden_layers=24)
    write_byte_tokenizer(model)
    out = tmp_path / "out"
    words = ["quantize", str(model), "-o", str(out), "--samples", "256", "--seq-len", "256"]
    process = subprocess.Popen(
        [sys.executable, "-m", "qtk", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    weights = tmp_path / "out.partial" / "model.safetensors"
    deadline = time.monotonic() + 120
    while not weights.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert weights.exists(), process.communicate()
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (130, ""), stderr
    assert "qtk: Stopped. " in stderr
    assert ("--resume" in stderr) == (tmp_path / "out.partial").exists()
    assert "Traceback" not in stderr
    # What a finished block is worth may stay beside it, for --resume; never under the final name.
    assert not out.exists()
    assert out.with_name(".out.qtk-lock").exists() == (tmp_path / "out.partial").exists()


def test_float_dtypes_of_weights_do_not_matter(run_qtk, tmp_path, make_tiny) -> None:
    """What is unusual but right is no bad input: a float32 checkpoint with its tied head saved twice."""
    model = make_tiny(tmp_path / "model", "llama-tied", dtype=torch.float32)
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    result = run_qtk("quantize", model, "-o", tmp_path / "out", *RTN)
    assert result.returncode == 0, result.stderr
