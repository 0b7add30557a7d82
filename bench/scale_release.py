"""Time, bytes read and memory of the commands of a release, on a run as large as that of a 33B model, in sparse files.

python bench/scale_release.py --work DIR                  (20 GB that take no room on the disk)
python bench/scale_release.py --work DIR --elsewhere DIR2 (the bundle on another file system, where it has to be copied)

The run holds a quantized checkpoint and an engine of half the bytes each, with manifests as the commands write them. Each
command runs in a process of its own; its bytes are those that it asked the system for (rchar of /proc/PID/io), its memory is the
peak of its resident set. What they are held against is a process that
does nothing but read the same files once through sha256, with as many threads as qtk takes. All run by turns, --rounds times; the
medians count.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path

from measured_command import MeasuredCommand, measure_command

from qtk.checkpoint.manifest import ManifestRecorder, file_digest
from qtk.engines.description import EngineDescription, EngineLimits, Quantization, Stage
from qtk.machine import processor_name, threads_for
from qtk.recipes.schema import RECIPE_COPY
from qtk.recipes.state import RunState, StepRecord
from qtk.wording import counted

SHARDS = 4
# Reads files once, several at a time, as fast as Python's own sha256 takes them.
DIGEST = """
import hashlib, sys
from concurrent.futures import ThreadPoolExecutor
def digest(path):
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
with ThreadPoolExecutor(int(sys.argv[1])) as pool:
    list(pool.map(digest, sorted(sys.argv[2:], key=lambda path: -__import__("os").path.getsize(path))))
"""
RECIPE = """name: large
model: org/large-33b
quantize: {}
build: {gpu: cpu, float_engine: false}
gates:
  - {metric: size, at_most: 100}
"""


def sparse(path: Path, size: int) -> None:
    with open(path, "wb") as stream:
        stream.truncate(size)


def make_run(run: Path, total: int) -> None:
    """The run, with each of its two large directories half of `total` bytes."""
    quantized, engine = run / "quantized", run / "engine"
    for directory in (quantized, engine):
        directory.mkdir(parents=True)
        (directory / "config.json").write_text("{}")
        (directory / "tokenizer.json").write_text("{}")
    for shard in range(SHARDS):
        sparse(quantized / f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors", total // 2 // SHARDS)
    sparse(engine / "model.onnx.data", total // 2)
    describe().save(engine)
    steps = {}
    for kind, step, directory in (("quantized-model", "quantize", quantized), ("engine", "build", engine)):
        recorder = ManifestRecorder(kind, {"gpu": "cpu"})
        if directory is engine:
            recorder.add_input(
                "model", quantized, [path for path in quantized.iterdir() if path.name != "qtk-manifest.json"]
            )
        else:
            recorder.notes["report"] = {
                "bits": 4, "group_size": 128, "symmetric": True, "method": "gptq", "format": "gptq",
                "quantized_bytes": total // 2, "float_bytes": 2 * total, "runtimes": ["vLLM and SGLang"],
            }  # fmt: skip
        recorder.write(directory, directory, 0)
        manifest = file_digest(directory / "qtk-manifest.json").sha256
        steps[step] = StepRecord(
            stage=step, directory=directory.name, digest="0" * 64, manifest_sha256=manifest, seconds=1.0
        )
    (run / RECIPE_COPY).write_text(RECIPE)
    RunState(recipe="large", steps=steps).save(run)


def describe() -> EngineDescription:
    return EngineDescription(
        architecture="LlamaForCausalLM", backend="onnxruntime", gpu="cpu", dtype="float32", lm_head_bits=16,
        limits=EngineLimits(max_batch=1, max_input_len=1024, max_output_len=512, max_positions=1536),
        vocab_size=32256, hidden_size=7168, num_layers=62, num_kv_heads=8, head_dim=128, windows=(None,) * 62, stop_tokens=(),
        quantization=Quantization(bits=4, group_size=128, symmetric=True, method="gptq"),
        stages=(Stage(file="model.onnx.data", layers=(0, 62), inputs=(), outputs=(), bytes=0),),
    )  # fmt: skip


def median(costs: list[MeasuredCommand]) -> MeasuredCommand:
    """The median time; what was read and the largest memory."""
    return MeasuredCommand(statistics.median(it.seconds for it in costs), costs[0].read, max(it.peak for it in costs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--elsewhere", type=Path)
    parser.add_argument("--gigabytes", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    run, total = given.work / "run", round(given.gigabytes * 1e9)
    shutil.rmtree(run, ignore_errors=True)
    make_run(run, total)
    files = [str(path) for path in sorted(run.rglob("*")) if path.is_file()]
    bundle = (given.elsewhere or given.work) / "large-int4"
    qtk, threads = [sys.executable, "-m", "qtk"], threads_for(None)
    once = f"sha256 of the same files, {counted(threads, 'thread')}"
    commands = {
        once: [sys.executable, "-c", DIGEST, str(threads), *files],
        "qtk gate": [*qtk, "gate", str(run)],
        "qtk bundle": [*qtk, "bundle", str(run), "-o", str(bundle)],
        "qtk verify of the run": [*qtk, "verify", str(run)],
        "qtk verify of the bundle": [*qtk, "verify", str(bundle)],
    }
    taken: dict[str, list[MeasuredCommand]] = {name: [] for name in commands}
    for _ in range(given.rounds):
        shutil.rmtree(bundle, ignore_errors=True)
        for name, words in commands.items():
            taken[name].append(measure_command(words))
    figures = {name: median(costs) for name, costs in taken.items()}
    print(f"{processor_name()}, {counted(threads, 'thread')}, median of {counted(given.rounds, 'round')}\n")
    print(f"| {given.gigabytes:g} GB | seconds | / sha256 | read, GB | peak memory, MB |\n|---|---:|---:|---:|---:|")
    for name, found in figures.items():
        ratio = found.seconds / figures[once].seconds
        print(f"| {name} | {found.seconds:.1f} | {ratio:.2f} | {found.read / 1e9:.2f} | {found.peak / 1e6:.0f} |")
    print(json.dumps({name: [vars(it) for it in costs] for name, costs in taken.items()}), file=sys.stderr)
    shutil.rmtree(bundle)
    shutil.rmtree(run)


if __name__ == "__main__":
    main()
