"""`qtk merge` as a user runs it: real processes, memory, a full disk, Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.peft_adapters import LINEARS

from qtk.adapters.merge import merge
from qtk.adapters.options import MergeOptions
from qtk.checkpoint.manifest import read_manifest, verify_chain
from qtk.checkpoint.reader import Checkpoint
from qtk.checkpoint.writer import CheckpointWriter, TensorSpec


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory: pytest.TempPathFactory, make_adapter) -> Path:
    return make_adapter(tiny("llama"), tmp_path_factory.mktemp("adapter") / "a", target_modules=["q_proj"])


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random model of 0.26 GB, most of it in embedding and head, and an adapter on everything; written straight out."""
    root = tmp_path_factory.mktemp("large")
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 2, "num_attention_heads": 8}
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 48_000, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": "bfloat16", **sizes,
    }  # fmt: skip
    h, m = sizes["hidden_size"], sizes["intermediate_size"]
    shapes = {"model.embed_tokens.weight": (48_000, h), "model.norm.weight": (h,), "lm_head.weight": (48_000, h)}
    modules: dict[str, tuple[int, int]] = {"lm_head": (48_000, h)}
    for layer in range(sizes["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        for name in LINEARS:
            place = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            modules[f"{block}{place}.{name}"] = (h, m) if name == "down_proj" else (m, h) if place == "mlp" else (h, h)
        shapes |= {f"{block}{norm}.weight": (h,) for norm in ("input_layernorm", "post_attention_layernorm")}
    shapes |= {f"{module}.weight": shape for module, shape in modules.items()}
    (root / "base").mkdir()
    (root / "base/config.json").write_text(json.dumps(config))
    write_random(root / "base", shapes, torch.bfloat16)
    (root / "adapter").mkdir()
    lora = {f"base_model.model.{module}.lora_{part}.weight": (16, inp) if part == "A" else (out, 16)
            for module, (out, inp) in modules.items() for part in "AB"}  # fmt: skip
    lora |= {
        "base_model.model.model.embed_tokens.lora_embedding_A": (16, 48_000),
        "base_model.model.model.embed_tokens.lora_embedding_B": (h, 16),
    }
    write_random(root / "adapter", lora, torch.float32)
    (root / "adapter/model.safetensors").rename(root / "adapter/adapter_model.safetensors")
    targets = [*LINEARS, "lm_head", "embed_tokens"]
    (root / "adapter/adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": targets})
    )
    return root / "base", root / "adapter"


def write_random(directory: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    with CheckpointWriter(directory, {name: TensorSpec(dtype, shape) for name, shape in shapes.items()}) as writer:
        for name, shape in shapes.items():
            writer.write(name, torch.randn(shape, generator=generator).mul_(0.02).to(dtype))


def test_result_manifest_and_chain(tiny, adapter: Path, tmp_path: Path, run_qtk) -> None:
    done = run_qtk("merge", tiny("llama"), adapter, "-o", tmp_path / "merged", "--weight", "0.5", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["tensors_changed"], result["adapters"][0]["kind"], result["adapters"][0]["weight"]) == (
        3,
        "LoRA",
        0.5,
    )
    manifest = read_manifest(tmp_path / "merged")
    assert [record.role for record in manifest.inputs] == ["base", "adapter"]
    assert manifest.options["weight"] == [0.5]
    assert set(manifest.outputs) == {
        str(p.relative_to(tmp_path / "merged")) for p in (tmp_path / "merged").iterdir()
    } - {"qtk-manifest.json", "README.md"}
    assert {finding.status for finding in verify_chain(tmp_path / "merged")} == {"ok"}
    shown = run_qtk("merge", tiny("llama"), adapter, "-o", tmp_path / "merged", "--overwrite")
    assert shown.returncode == 0, shown.stderr
    assert all(word in shown.stdout for word in ("LoRA", "tensors changed", "seconds", "peak memory"))


def test_wrong_options_exit_2(tiny, adapter: Path, tmp_path: Path, run_qtk) -> None:
    for words, sentence in (
        (["--weight", "x"], "not a valid float"),
        (["--qlora-base", "int8"], "nf4"),
        (["--shard-gb", "0"], "--shard-gb"),
        (["--weight", "1", "--weight", "2"], "2 times for 1 adapters"),
    ):
        done = run_qtk("merge", tiny("llama"), adapter, "-o", tmp_path / "out", *words)
        assert (done.returncode, sentence in done.stderr) == (2, True), done.stderr
    assert run_qtk("merge", tiny("llama"), "-o", tmp_path / "out").returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_kept(tiny, adapter: Path, tmp_path: Path, run_qtk) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("kept")
    refused = run_qtk("merge", tiny("llama"), adapter, "-o", tmp_path / "out")
    assert refused.returncode == 2
    assert "exists already" in refused.stderr
    failed = run_qtk("merge", tiny("llama"), tmp_path / "absent", "-o", tmp_path / "out", "--overwrite")
    assert failed.returncode == 2
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out/precious").read_text() == "kept"


def test_a_merge_is_replaced_when_the_new_one_is_complete(tiny, adapter: Path, tmp_path: Path, run_qtk) -> None:
    assert run_qtk("merge", tiny("llama"), adapter, "-o", tmp_path / "out").returncode == 0
    before = (tmp_path / "out/model.safetensors").read_bytes()
    assert (
        run_qtk("merge", tiny("llama"), adapter, "-o", tmp_path / "out", "--overwrite", "--weight", 2).returncode == 0
    )
    assert (tmp_path / "out/model.safetensors").read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_memory_stays_within_bounds(large: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = large
    peak = r"""
import re, sys
from pathlib import Path
from qtk.adapters.merge import merge
from qtk.adapters.options import MergeOptions
if sys.argv[1:]:
    merge(Path(sys.argv[1]), [Path(sys.argv[2])], Path(sys.argv[3]), MergeOptions(qlora_base=sys.argv[4] or 'none'))
# Not ru_maxrss: that starts at what the parent held when it forked.
print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024)
"""

    def measured(*words: object) -> int:
        done = subprocess.run(
            [sys.executable, "-c", peak, *map(str, words)], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    idle = measured()
    checkpoint = Checkpoint(base)
    largest = max(checkpoint.info(name).nbytes for name in checkpoint.names)
    allowed = (adapter / "adapter_model.safetensors").stat().st_size + 2 * largest + 300e6
    for qlora in ("", "nf4"):
        above = measured(base, adapter, tmp_path / f"out{qlora}", qlora) - idle
        # Far below what is allowed: factors and slices are held, never a float32 copy of one of the largest tensors.
        assert above < min(allowed, 300e6), f"{above / 1e6:.0f} MB above idle, {allowed / 1e6:.0f} allowed"


def test_a_large_tensor_in_slices_equals_peft(large: tuple[Path, Path], tmp_path: Path, run_qtk, peft_merged) -> None:
    base, adapter = large
    done = run_qtk("merge", base, adapter, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    ours, expected = Checkpoint(tmp_path / "out"), peft_merged(base, adapter)
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.down_proj.weight"):
        torch.testing.assert_close(ours.tensor(name), expected[name], atol=2e-4, rtol=2**-7)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_stopped_merge_leaves_nothing(large: tuple[Path, Path], tmp_path: Path, number: signal.Signals) -> None:
    words = [sys.executable, "-m", "qtk", "merge", str(large[0]), str(large[1]), "-o", str(tmp_path / "out")]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out.partial/model.safetensors").exists():  # the weights are being written
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said.strip().splitlines()[-1] == f"qtk: Stopped. {tmp_path / 'out'} was not written."
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tiny, adapter: Path, tmp_path: Path) -> None:
    """A file system of 600 kB in a mount namespace of the test's own; the model needs 900."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare")
    mount = f"mount -t tmpfs -o size=600k none {tmp_path}"
    enter = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    if subprocess.run([*enter, "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    words = f"{sys.executable} -m qtk merge {tiny('llama')} {adapter} -o {tmp_path}/out"
    script = f"{mount} && {{ {words}; code=$?; ls -A {tmp_path}; exit $code; }}"
    done = subprocess.run([*enter, "sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 4
    assert "1.05 MB are needed and the disk has" in done.stderr
    assert done.stdout == ""


def test_a_disk_that_fills_on_the_way(tiny, adapter: Path, tmp_path: Path, make_tiny) -> None:
    """The weights fit, the tokenizer's files do not: found late, and still nothing stays."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare")
    base = make_tiny(tmp_path / "base", "llama")
    (base / "tokenizer.json").write_bytes(b" " * 900_000)
    size = (base / "model.safetensors").stat().st_size // 1024 + 200
    (tmp_path / "disk").mkdir()
    mount = f"mount -t tmpfs -o size={size}k none {tmp_path}/disk"
    enter = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    if subprocess.run([*enter, "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    words = f"{sys.executable} -m qtk merge {base} {adapter} -o {tmp_path}/disk/out"
    script = f"{mount} && {{ {words}; code=$?; ls -A {tmp_path}/disk; exit $code; }}"
    done = subprocess.run([*enter, "sh", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (4, ""), done.stderr
    assert "The disk is full" in done.stderr


def test_every_byte_of_the_base_is_read_once(large, tmp_path) -> None:
    """The manifest's digests are taken from the bytes as they pass. Of the adapter every byte is read twice: its values are
    checked before the work."""
    base, adapter = large

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = bytes_read()
    merge(base, [adapter], tmp_path / "out", MergeOptions())
    read = bytes_read() - before
    expected = (base / "model.safetensors").stat().st_size + 2 * (adapter / "adapter_model.safetensors").stat().st_size
    assert read < 1.01 * expected
    assert not [finding for finding in verify_chain(tmp_path / "out") if finding.bad]
