"""Decoding speed of qtk's cpu engine beside ONNX Runtime GenAI and llama.cpp, on the same INT4 weights, in one run.

python bench/compare_decoding.py MODEL [--genai-python PYTHON] [--shapes 16/8,64/32] [--runs 10] [--threads 2] [--json FILE]

MODEL is what `qtk quantize --container gguf` wrote (groups of 64); the GenAI builder gets the same codes in a gptq
checkpoint. Each runtime is held ready in a process of its own; they take turns call by call, so that other load on
the machine meets all alike. Whole-call tokens/s, as `qtk bench latency` defines it, prefill included. The builder's
model is made with its defaults (its lm_head at 4 bits); llama.cpp keeps what the GGUF says; qtk's head is at 8 bits.
A runtime that is not installed is left out and named. Where llama.cpp crashes on an AMX processor: LLAMA_AS_STORED=1.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from qtk.bench.options import parse_shapes
from qtk.engines.build import build_engine
from qtk.engines.options import BuildOptions
from qtk.quantization.formats.gguf_checkpoint import is_gguf_directory
from qtk.quantization.formats.registry import checkpoint_format
from qtk.quantization.model_weights import ModelWeights, open_checkpoint
from qtk.quantization.repack import repack

# A runtime's threads spin for a moment after a call: they must not take the next one's cores.
REST_SECONDS = 0.2
WORKER = Path(__file__).with_name("decoding_worker.py")


class Runtime:
    """A worker process, asked call by call."""

    def __init__(self, kind: str, python: str, model: Path, threads: int) -> None:
        self.kind = kind
        self._process = subprocess.Popen(
            [python, str(WORKER), kind, str(model), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def _answer(self) -> dict:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.kind} ended with exit code {self._process.wait()}; its messages are above.")

    def call(self, prompt: list[int], new_tokens: int) -> dict:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompt": prompt, "new_tokens": new_tokens}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def build_genai(python: str, model: Path, out: Path, threads: int) -> Path:
    """The same checkpoint by ONNX Runtime GenAI's own builder; the thread count goes into its configuration."""
    words = [
        python,
        "-m",
        "onnxruntime_genai.models.builder",
        "-i",
        str(model),
        "-o",
        str(out),
        "-p",
        "int4",
        "-e",
        "cpu",
    ]
    built = subprocess.run([*words, "-c", str(out / "cache")], capture_output=True, text=True)
    if built.returncode:
        raise SystemExit(f"The GenAI builder failed:\n{built.stderr[-2000:]}")
    config = json.loads((out / "genai_config.json").read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    (out / "genai_config.json").write_text(json.dumps(config))
    return out


def as_gptq(model: Path, work: Path) -> Path:
    """The model as the GenAI builder reads it: a GGUF file's codes are written again as a gptq checkpoint."""
    if not is_gguf_directory(model):
        return model
    out = work / "gptq"
    out.mkdir()
    repack(ModelWeights.open(model), checkpoint_format("gptq"), out)
    return out


def start_runtimes(arguments: argparse.Namespace, work: Path, most: tuple[int, int]) -> list[Runtime]:
    model, threads = arguments.model, arguments.threads
    engine = arguments.engine or work / "engine"
    if arguments.engine is None:
        build_engine(model, engine, BuildOptions(max_input_len=most[0], max_output_len=most[1]))
    runtimes = [Runtime("qtk", sys.executable, engine, threads)]
    if arguments.genai_python:
        genai = arguments.genai_model or build_genai(
            arguments.genai_python, as_gptq(model, work), work / "genai", threads
        )
        runtimes.append(Runtime("genai", arguments.genai_python, genai, threads))
    file = next(model.glob("*.gguf"), None)
    if importlib.util.find_spec("llama_cpp") and file is not None:
        runtimes.append(Runtime("llama.cpp", sys.executable, file, threads))
    left_out = {"genai", "llama.cpp"} - {runtime.kind for runtime in runtimes}
    if left_out:
        print(f"Left out, not installed or no model for it: {', '.join(sorted(left_out))}", file=sys.stderr)
    return runtimes


def measure(runtimes: list[Runtime], shape: tuple[int, int], runs: int, vocab: int) -> dict[str, dict[str, float]]:
    """By runtime: medians over the runs of whole-call and decode tokens/s and of the time to first token."""
    random = np.random.default_rng(0)
    calls: dict[str, list[dict]] = {runtime.kind: [] for runtime in runtimes}
    for number in range(runs + 2):
        prompt = random.integers(0, vocab, shape[0]).tolist()
        for runtime in runtimes:
            time.sleep(REST_SECONDS)
            answer = runtime.call(prompt, shape[1])
            assert len(answer["tokens"]) == shape[1]
            if number >= 2:
                calls[runtime.kind].append(answer)
    return {kind: summary(answers, shape[1]) for kind, answers in calls.items()}


def summary(answers: list[dict], output: int) -> dict[str, float]:
    whole = [a["prefill"] + a["decode"] for a in answers]
    return {
        "tokens_per_s": output / float(np.mean(whole)),
        "median_tokens_per_s": output / float(np.median(whole)),
        "best_tokens_per_s": output / min(whole),
        "decode_tokens_per_s": (output - 1) / float(np.median([a["decode"] for a in answers])) if output > 1 else 0.0,
        "ttft_ms": float(np.median([a["prefill"] for a in answers])) * 1e3,
        "best_ttft_ms": min(a["prefill"] for a in answers) * 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--engine", type=Path, help="a qtk engine that is built already")
    parser.add_argument(
        "--genai-python", help="python of an environment with onnxruntime-genai, torch and transformers"
    )
    parser.add_argument("--genai-model", type=Path, help="a GenAI model that is built already")
    parser.add_argument("--shapes", default="16/8,64/32,256/128,1024/512")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    shapes = parse_shapes(arguments.shapes)
    vocab = int(open_checkpoint(arguments.model).config["vocab_size"])
    with tempfile.TemporaryDirectory() as work:
        most = (max(s[0] for s in shapes), max(s[1] for s in shapes))
        runtimes = start_runtimes(arguments, Path(work), most)
        results = {f"{i}/{o}": measure(runtimes, (i, o), arguments.runs, vocab) for i, o in shapes}
        for runtime in runtimes:
            runtime.close()
    print("| input/output | runtime | tokens/s, whole call (mean) | median | best | decode tokens/s | TTFT ms |")
    print("|---|---|---|---|---|---|---|")
    for shape, rows in results.items():
        for kind, r in rows.items():
            rates = f"{r['tokens_per_s']:.1f} | {r['median_tokens_per_s']:.1f} | {r['best_tokens_per_s']:.1f}"
            print(f"| {shape} | {kind} | {rates} | {r['decode_tokens_per_s']:.1f} | {r['ttft_ms']:.1f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
