"""Time, memory and bytes of qtk's commands on random checkpoints of real shapes: what a size costs, before anybody has it.

python bench/scale.py merge    --shape 7b  --layers 4 --work DIR
python bench/scale.py quantize --shape 33b --layers 1 --work DIR -- --samples 32 --seq-len 512 --memory 8
python bench/scale.py build    --shape 7b  --layers 2 --work DIR -- --gpu a10
python bench/scale.py copy     --shape 7b  --layers 4 --work DIR           (cp and sync of the same files)
python bench/scale.py merge    --shape 7b  --layers 32 --work DIR --cold --by-turns 2    (a copy before each merge)
python bench/scale.py quantize --shape 1b  --layers 2 --work DIR --trace   (bytes by what they belong to, from strace)
python bench/scale.py forecast --shape 1b  --layers 8 --work DIR -- --samples 8 --seq-len 512

The checkpoint (bf16, in shards, weights of standard deviation 0.02) and a rank-192 adapter on all linears are made in DIR where
they are not there yet; what a command writes is removed. `build` reads a random INT4 checkpoint of the same shape. Words after --
go to the command.

Each command runs in a process of its own, which samples the stacks of its threads: a sample counts as reading, writing
(with waiting for the disk), digesting or computing, by what the thread is in; threads that wait for others do not count.
Bytes are those that the process asked the system for (rchar and wchar of /proc/self/io), less what it had read when its modules
were imported; --trace asks strace for them, file by file (and is slower). `forecast` asks `qtk plan --prepare`, then runs merge,
quantize and build-engine as whole commands, one after the other, and prints what each took beside what was forecast; words after --
go to plan and to quantize. blocks_by_their_products: how many times as long the
blocks took as the lines in them that multiply matrices. A line of JSON on stdout holds the figures.
"""

from __future__ import annotations

import argparse
import json
import linecache
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import random_int4_llama
from measured_command import measure_command

from qtk.checkpoint.staging import partial_path

SHAPES = {
    "tiny": (256, 768, 8, 2, 4, 1000),
    "1b": (2048, 5632, 32, 4, 22, 32000),
    "7b": (4096, 11008, 32, 32, 32, 32256),
    "33b": (7168, 19200, 56, 8, 62, 32256),
}  # hidden, intermediate, heads, key/value heads, layers, vocabulary
RANK = 192
PLACES = {  # (module, function) of the innermost frames -> what the thread does
    ("safetensors_file", "_fill"): "reading",
    ("passing_digest", "_read_up_to"): "reading",
    ("passing_digest", "show"): "digesting",
    ("manifest", "file_digest"): "digesting",
    ("hashlib", "file_digest"): "digesting",
    ("writer", "_pwrite_all"): "writing",
    ("writer", "_lay_out"): "writing",
    ("staging", "flush_file"): "writing",
    ("activations", "write"): "writing",
    ("activations", "save"): "writing",
    ("activations", "read"): "reading",
}
PRODUCT = re.compile(r"addmm|addmv|F\.linear|scaled_dot_product|solve_triangular|cholesky_ex| @ ")
WAITING = {("threading", "wait"), ("threading", "_wait_for_tstate_lock"), ("thread", "_worker"), ("scale", "_sample")}


def config(shape: str, layers: int) -> dict[str, object]:
    hidden, intermediate, heads, kv_heads, _, vocabulary = SHAPES[shape]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def make_model(place: Path, shape: str, layers: int) -> Path:
    """The random checkpoint, with a tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from qtk.checkpoint.writer import CheckpointWriter, TensorSpec
    from qtk.models.registry import spec_from_config

    if (place / "config.json").is_file():
        return place
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    settings = config(shape, layers)
    shapes = spec_from_config(settings, "config").all_tensors()
    generator = torch.Generator().manual_seed(0)
    # One pool of random numbers, from which every tensor takes another stretch: to draw them all would take an hour at 33B.
    pool = torch.randn(1 << 24, generator=generator).mul_(0.02).bfloat16()
    specs = {name: TensorSpec(torch.bfloat16, size) for name, size in shapes.items()}
    with CheckpointWriter(place, specs, shard_bytes=450_000_000) as writer:
        for name, size in shapes.items():
            if name.endswith("norm.weight"):
                writer.write(name, torch.ones(size, dtype=torch.bfloat16))
                continue
            rows = max(1, (1 << 23) // size[1])
            for start in range(0, size[0], rows):
                count = min(rows, size[0] - start) * size[1]
                offset = int(torch.randint(0, len(pool) - count, (1,), generator=generator))
                writer.write_rows(name, start, pool[offset : offset + count].view(-1, size[1]))
            writer.mark_written(name)
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(place / "tokenizer.json"))
    (place / "config.json").write_text(json.dumps(settings, indent=2))
    return place


def make_adapter(place: Path, shape: str, layers: int) -> Path:
    """A random adapter on every linear of the blocks, in bf16."""
    import torch

    from qtk.checkpoint.writer import CheckpointWriter, TensorSpec
    from qtk.models.registry import spec_from_config

    if (place / "adapter_config.json").is_file():
        return place
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    specs = {}
    for module, linear in spec_from_config(config(shape, layers), "config").all_linears():
        for part, size in (("A", (RANK, linear.in_features)), ("B", (linear.out_features, RANK))):
            specs[f"base_model.model.{module}.lora_{part}.weight"] = TensorSpec(torch.bfloat16, size)
    generator = torch.Generator().manual_seed(1)
    with CheckpointWriter(place, specs, file_name="adapter_model.safetensors") as writer:
        for name, spec in specs.items():
            writer.write(name, torch.randn(spec.shape, generator=generator).mul_(0.01).bfloat16())
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "target_modules": targets}
    (place / "adapter_config.json").write_text(json.dumps(settings))
    return place


class Watch:
    """What this process does from here on: samples of its threads, its anonymous memory, bytes and processor time."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.block: Counter[str] = Counter()
        self.anonymous = 0
        self.before = _io()
        self.start, self.cpu = time.monotonic(), os.times()
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        own = threading.get_ident()
        while True:
            time.sleep(0.1)  # seldom: the thread that watches takes processor time itself
            self.anonymous = max(self.anonymous, _status("RssAnon"))
            for thread, frame in sys._current_frames().items():
                if thread != own and (what := _what(frame)):
                    self.counts[what] += 1
                    if any(inner.f_code.co_name == "quantize_block" for inner in _frames(frame)):
                        self.block["products" if _in_product(frame) else "other"] += 1

    def figures(self) -> dict[str, object]:
        after, cpu, total = _io(), os.times(), max(1, sum(self.counts.values()))
        return {
            "seconds": round(time.monotonic() - self.start, 1),
            "user_seconds": round(cpu.user - self.cpu.user, 1),
            "system_seconds": round(cpu.system - self.cpu.system, 1),
            "peak_bytes": _status("VmHWM"),
            "peak_anonymous_bytes": self.anonymous,
            "bytes_read": after["rchar"] - self.before["rchar"],
            "bytes_written": after["wchar"] - self.before["wchar"],
            "shares": {what: round(count / total, 3) for what, count in self.counts.most_common()},
            "blocks_by_their_products": round(self.block.total() / max(1, self.block["products"]), 3),
        }


def _what(frame: FrameType) -> str | None:
    """What a thread is in: the innermost frame that says so. None for a thread that waits for another."""
    for depth, inner in enumerate(_frames(frame)):
        key = (Path(inner.f_code.co_filename).stem, inner.f_code.co_name)
        if depth < 2 and key in WAITING:
            return None
        if key in PLACES:
            return PLACES[key]
    return "computing"


def _in_product(frame: FrameType) -> bool:
    """Whether the line that a thread is in multiplies matrices, or solves with one."""
    return bool(PRODUCT.search(linecache.getline(frame.f_code.co_filename, frame.f_lineno)))


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _io() -> dict[str, int]:
    lines = Path("/proc/self/io").read_text().splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def watched(words: list[str]) -> None:
    """Runs `qtk WORDS` in this process and prints the figures as the last line."""
    import qtk.adapters.merge
    import qtk.engines.build
    import qtk.quantization.quantize  # noqa: F401 - imports are not what is measured
    from qtk.cli.main import main

    watch, code = Watch(), 0
    try:
        code = main(words) or 0
    except SystemExit as end:
        code = int(end.code or 0)
    print(json.dumps({"exit_code": code, **watch.figures()}), flush=True)


def run(words: list[str], trace: Path | None = None) -> dict[str, object]:
    """`qtk WORDS --json` in a process of its own; trace: where strace writes what it read and wrote (None: it does not run)."""
    command = [sys.executable, __file__, "--watched", *words, "--json"]
    if trace is not None:
        calls = "read,pread64,preadv,preadv2,readv,write,pwrite64,writev,pwritev,copy_file_range,sendfile"
        command = [
            "strace",
            "-f",
            "--seccomp-bpf",
            "-qq",
            "-y",
            "-e",
            f"trace={calls}",
            "-s",
            "0",
            "-o",
            str(trace),
            *command,
        ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    *report, last = done.stdout.splitlines() or [""]
    figures: dict[str, object] = json.loads(last) if last else {}
    if done.returncode or figures.get("exit_code"):
        sys.exit(f"qtk {' '.join(words)} failed")
    told = json.loads("\n".join(report)) if report else {}
    for name in ("seconds", "calibration_tokens", "compute_dtype", "activation_bytes", "spilled_bytes", "read_back"):
        if name in told:
            figures[f"reported_{name}"] = told[name]
    return figures


def traced_bytes(trace: Path, places: dict[str, Path]) -> dict[str, dict[str, int]]:
    """From strace's lines the bytes read and written in each of the named directories; of a file in several the first counts."""
    begun = re.compile(r"^(\d+) +(\w+)\(\d+<([^>]*)>")
    ended = re.compile(r"^(\d+) .* = (\d+)$")
    found = {name: {"read": 0, "written": 0} for name in places}
    under_way: dict[str, tuple[str, str]] = {}
    with trace.open(errors="replace") as lines:
        for line in lines:
            if call := begun.match(line):
                under_way[call[1]] = (call[2], call[3])
            if (end := ended.match(line)) and end[1] in under_way:
                what, path = under_way.pop(end[1])
                name = next((name for name, place in places.items() if path.startswith(f"{place}/")), None)
                if name:
                    found[name]["written" if "write" in what else "read"] += int(end[2])
    return found


def copied(model: Path, out: Path) -> dict[str, object]:
    """cp of the files, and the same with the wait for the disk."""
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["cp", "-r", str(model), str(out)], check=True)
    seconds = time.monotonic() - start
    subprocess.run(["sync", "-f", str(out)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": round(seconds, 1),
        "seconds_with_sync": round(time.monotonic() - start, 1),
        "user_seconds": round(after.ru_utime - before.ru_utime, 1),
        "system_seconds": round(after.ru_stime - before.ru_stime, 1),
    }


def drop_pages(*places: Path) -> None:
    """Drops the files' pages from memory."""
    os.sync()
    for path in (path for place in places for path in place.glob("*") if path.is_file()):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Bench:
    """One command on one checkpoint, as often as it is asked for."""

    def __init__(self, options: argparse.Namespace, extra: list[str]) -> None:
        layers = options.layers or SHAPES[options.shape][4]
        self.options, self.work, self.name = options, options.work, f"{options.shape}-{layers}"
        self.layers = layers
        self.model = self.work / self.name
        if options.command != "build":
            make_model(self.model, options.shape, layers)
        self.out = self.work / f"{self.name}-{options.command}"
        self.words = [*self._inputs(layers), "-o", str(self.out), *extra]

    def _inputs(self, layers: int) -> list[str]:
        """The command and what it reads, made where it is not there yet."""
        command = self.options.command
        if command in ("merge", "make", "forecast"):
            adapter = make_adapter(self.work / f"{self.name}-adapter", self.options.shape, layers)
            return ["merge", str(self.model), str(adapter)]
        if command != "build":
            return ["quantize", str(self.model)]
        int4 = self.work / f"{self.name}-int4"
        if not int4.is_dir():
            random_int4_llama.write(config(self.options.shape, layers), int4)
        return ["build-engine", str(int4)]

    @property
    def read(self) -> list[Path]:
        """The directories that the command reads."""
        return [Path(word) for word in self.words[1:] if Path(word).is_dir() and Path(word) != self.out]

    def once(self, command: str) -> dict[str, object]:
        """The figures of the command, or of a copy; what it wrote is removed."""
        self._remove_output()
        if self.options.cold:
            drop_pages(*self.read)
        if command == "copy":
            figures = copied(self.model, self.out)
        elif self.options.trace:
            figures = self._traced()
        else:
            figures = run(self.words)
        written = sum(path.stat().st_size for path in self.out.rglob("*") if path.is_file())
        self._remove_output()
        size = sum(path.stat().st_size for place in self.read for path in place.iterdir() if path.is_file())
        return {"command": command, "model": self.name, "input_bytes": size, "output_bytes": written, **figures}

    def forecast(self, extra: list[str]) -> Iterator[dict[str, object]]:
        """For merge, quantize and build-engine what was forecast, and what the whole command then took."""
        qtk = [sys.executable, "-m", "qtk"]
        planned = subprocess.run(
            [*qtk, "plan", str(self.model), "--prepare", "--rank", str(RANK), "--json", *extra],
            stdout=subprocess.PIPE,
            check=True,
        )
        steps = {step["step"].split(",")[0].split(" ")[0]: step for step in json.loads(planned.stdout)["steps"]}
        adapter = make_adapter(self.work / f"{self.name}-adapter", self.options.shape, self.layers)
        outs = {name: self.work / f"{self.name}-forecast-{name}" for name in ("merge", "quantize", "build-engine")}
        commands = {
            "merge": [str(self.model), str(adapter)],
            "quantize": [str(self.model), *extra],
            "build-engine": [str(outs["quantize"]), "--gpu", "cpu"],
        }
        for name, words in commands.items():
            shutil.rmtree(outs[name], ignore_errors=True)
            took = measure_command([*qtk, name, *words, "-o", str(outs[name])])
            written = sum(path.stat().st_size for path in outs[name].rglob("*") if path.is_file())
            found = {"seconds": round(took.seconds, 1), "memory": took.peak, "written": written}
            told = steps[name]
            ratios = {key: round(told[key] / found[key], 2) for key in ("seconds", "memory", "written")}
            yield {"command": name, "model": self.name, "forecast": told, "found": found, "forecast_by_found": ratios}
        for out in outs.values():
            shutil.rmtree(out, ignore_errors=True)

    def _remove_output(self) -> None:
        """What was written, also by a run that was stopped."""
        for place in (self.out, partial_path(self.out)):
            shutil.rmtree(place, ignore_errors=True)

    def _traced(self) -> dict[str, object]:
        with tempfile.NamedTemporaryFile(dir=self.work) as trace:
            figures = run(self.words, Path(trace.name))
            from qtk.quantization.unfinished import WORK

            partial = partial_path(self.out)
            places = {
                **{f"of {place.name}": place for place in self.read},
                "scratch": partial / WORK,
                "output": partial,
                "finished output": self.out,
            }
            return {**figures, "traced_bytes": traced_bytes(Path(trace.name), places)}


def processor() -> str:
    """The processor's name and how many of its cores may be used."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    return f"{len(os.sched_getaffinity(0))} cores of {name}"


def main() -> None:
    """Makes what is needed, runs the command, prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("merge", "quantize", "build", "copy", "make", "forecast"))
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--layers", type=int, help="default: those of the real model")
    parser.add_argument("--work", type=Path, required=True, help="directory for the checkpoints and results")
    parser.add_argument("--cold", action="store_true", help="drop the files' pages from memory first")
    parser.add_argument("--by-turns", type=int, metavar="N", help="N times a copy of the model and the command")
    parser.add_argument("--trace", action="store_true", help="count bytes by directory with strace")
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:cut])
    bench = Bench(options, given[cut + 1 :])
    if options.command == "make":
        return
    if options.command == "forecast":
        for figures in bench.forecast(given[cut + 1 :]):
            print(json.dumps({**figures, "processor": processor()}), flush=True)
        return
    for command in ("copy", options.command) * options.by_turns if options.by_turns else (options.command,):
        load = os.getloadavg()[0]
        print(json.dumps({**bench.once(command), "processor": processor(), "load_before": load}), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--watched"]:
        watched(sys.argv[2:])
    else:
        main()
