"""Time and peak memory of `qtk merge` beside peft's merge_and_unload + save_pretrained, in one run.

python bench/compare_merge.py [--work DIR] [--runs N] [--json FILE]       (needs peft; about 8 GB of disk)

The model is a random Llama of about 1.1 B parameters (bf16, several shards), the adapter of rank 64 on all linears;
both are made once, tensor by tensor. Each side runs in a process of its own, the two by turns; a run's peak is what
the kernel counted for that process, imports included. qtk also writes its manifest, with the sha256 of every input and
output file, and syncs to the disk; peft does neither. The weights of both results are compared at the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from measured_command import measure_command

from qtk.checkpoint.reader import Checkpoint
from qtk.checkpoint.writer import CheckpointWriter, TensorSpec

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
RANK = 64
LINEARS = {
    "self_attn.q_proj": (2048, 2048),
    "self_attn.k_proj": (256, 2048),
    "self_attn.v_proj": (256, 2048),
    "self_attn.o_proj": (2048, 2048),
    "mlp.gate_proj": (5632, 2048),
    "mlp.up_proj": (5632, 2048),
    "mlp.down_proj": (2048, 5632),
}
PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
"""


def write_random(directory: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, shard_bytes: int) -> None:
    """Random tensors of these shapes (standard deviation 0.02), one at a time."""
    directory.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    specs = {name: TensorSpec(dtype, shape) for name, shape in shapes.items()}
    with CheckpointWriter(directory, specs, shard_bytes=shard_bytes) as writer:
        for name, shape in shapes.items():
            writer.write(name, torch.randn(shape, generator=generator).mul_(0.02).to(dtype))


def make_inputs(work: Path) -> tuple[Path, Path]:
    """The model and the adapter, made where they are not there yet."""
    base, adapter = work / "base", work / "adapter"
    layers = range(int(str(CONFIG["num_hidden_layers"])))
    modules = {f"model.layers.{i}.{name}": shape for i in layers for name, shape in LINEARS.items()}
    if not (base / "config.json").is_file():
        shutil.rmtree(base, ignore_errors=True)
        norms = [f"model.layers.{i}.{n}" for i in layers for n in ("input_layernorm", "post_attention_layernorm")]
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (32000, 2048),
            "lm_head.weight": (32000, 2048),
        }
        shapes |= {f"{name}.weight": (2048,) for name in (*norms, "model.norm")}
        shapes |= {f"{name}.weight": shape for name, shape in modules.items()}
        write_random(base, shapes, torch.bfloat16, 500_000_000)
        (base / "config.json").write_text(json.dumps(CONFIG, indent=2))
    if not (adapter / "adapter_config.json").is_file():
        shutil.rmtree(adapter, ignore_errors=True)
        factors = {}
        for name, (out, inp) in modules.items():
            factors[f"base_model.model.{name}.lora_A.weight"] = (RANK, inp)
            factors[f"base_model.model.{name}.lora_B.weight"] = (out, RANK)
        write_random(adapter, factors, torch.float32, 10**10)
        (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK}
        targets = [name.rsplit(".", 1)[-1] for name in LINEARS]
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "target_modules": targets}))
    return base, adapter


def farthest(one: Path, other: Path) -> tuple[int, float]:
    """(tensors, largest difference) between two results, in units of bf16's last place at each value."""
    first, second = Checkpoint(one), Checkpoint(other)
    if set(first.names) != set(second.names):
        sys.exit(f"{one} and {other} do not hold the same tensors")
    worst = 0.0
    for name in first.names:
        a, b = first.tensor(name).float(), second.tensor(name).float()
        place = torch.maximum(a.abs(), b.abs()).clamp(min=2.0**-20).log2().floor().exp2() * 2**-7
        worst = max(worst, ((a - b).abs() / place).max().item())
    return len(first.names), worst


def main() -> None:
    """Makes the inputs, runs both sides by turns, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, help="where model, adapter and results go (default: a temporary directory)"
    )
    parser.add_argument("--runs", type=int, default=2, help="runs of each side; the best counts")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        compare(options.work or Path(temporary), options.runs, options.json)


def compare(work: Path, runs: int, report: Path | None) -> None:
    """One comparison in the directory `work`."""
    base, adapter = make_inputs(work)
    sides = {
        "qtk merge": [sys.executable, "-m", "qtk", "-q", "merge", str(base), str(adapter), "-o", str(work / "qtk")],
        "peft merge_and_unload + save": [sys.executable, "-c", PEFT, str(base), str(adapter), str(work / "peft")],
    }
    idle = measure_command([sys.executable, "-c", "import qtk.adapters.merge"]).peak
    best: dict[str, tuple[float, int]] = {}
    for run in range(runs):
        for name, words in sides.items():
            shutil.rmtree(Path(words[-1]), ignore_errors=True)
            took = measure_command(words)
            seconds, peak = took.seconds, took.peak
            print(f"run {run + 1}: {name}: {seconds:.1f} s, {peak / 1e6:.0f} MB", file=sys.stderr)
            before = best.get(name, (seconds, peak))
            best[name] = (min(seconds, before[0]), max(peak, before[1]))
    tensors, worst = farthest(work / "qtk", work / "peft")
    (ours, our_peak), (theirs, their_peak) = best.values()
    print("| | seconds | peak MB | above the idle import, MB |\n|---|---|---|---|")
    for name, (seconds, peak) in best.items():
        print(f"| {name} | {seconds:.1f} | {peak / 1e6:.0f} | {(peak - idle) / 1e6:.0f} |")
    print(f"| qtk / peft | {ours / theirs:.2f} | {our_peak / their_peak:.2f} | |")
    print(f"\n{tensors} tensors; largest difference {worst:.2f} of bf16's last place")
    if report:
        figures = {name: {"seconds": seconds, "peak_bytes": peak} for name, (seconds, peak) in best.items()}
        report.write_text(
            json.dumps({"sides": figures, "idle_bytes": idle, "largest_difference": worst}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
