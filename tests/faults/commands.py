"""The commands that write, on the workshop's files, each in a fraction of a second, and what their outputs hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from faults.conftest import Workshop

Words = tuple[object, ...]
_SMALL = ("--samples", 2, "--seq-len", 16, "--group-size", 32, "--threads", 1)
_ENGINE = ("--max-input-len", 16, "--max-output-len", 16)


def _finetune(w: Workshop, out: Path) -> Words:
    words = ("finetune", w.m, "--data", w.root / "chats.jsonl", "-o", out, "--epochs", 1, "--rank", 2, "--seq-len", 32)
    return *words, "--batch-size", 4, "--micro-batch", 2, "--threads", 1, "--device", "cpu", "--chat-format", "codefuse"


COMMANDS: dict[str, Callable[[Workshop, Path], Words]] = {
    "merge": lambda w, out: ("merge", w.m, w.a, "-o", out, "--any-base"),
    "quantize rtn": lambda w, out: ("quantize", w.m, "-o", out, "--method", "rtn", "--group-size", 32, "--threads", 1),
    "quantize gptq fast": lambda w, out: ("quantize", w.m, "-o", out, "--effort", "fast", *_SMALL),
    "quantize gptq default": lambda w, out: ("quantize", w.m, "-o", out, *_SMALL),
    "quantize gptq best": lambda w, out: ("quantize", w.m, "-o", out, "--effort", "best", *_SMALL),
    "quantize awq": lambda w, out: ("quantize", w.m, "-o", out, "--method", "awq", "--effort", "fast", *_SMALL),
    "quantize auto": lambda w, out: ("quantize", w.m, "-o", out, "--method", "auto", "--effort", "fast", *_SMALL),
    "build-engine cpu": lambda w, out: ("build-engine", w.m, "-o", out, "--gpu", "cpu", *_ENGINE),
    "build-engine a10": lambda w, out: ("build-engine", w.root / "q-gptq", "-o", out, "--gpu", "a10", "--prepare-only", *_ENGINE),
    "bench divergence": lambda w, out: (
        "bench", "divergence", w.root / "q-gptq", "--reference", w.m, "-o", out, "--rows", 2, "--seq-len", 16, "--threads", 1),
    "bench accuracy": lambda w, out: (
        "bench", "accuracy", "--suite", w.root / "suite.yaml", "--data", w.root, "--generations", w.root / "answers.jsonl",
        "-o", out, "--allow-unsandboxed"),
    "finetune": _finetune,
    "run": lambda w, out: ("run", w.root / "recipe.yaml", "-o", out),
}  # fmt: skip


def contents(directory: Path) -> dict[str, str]:
    """The digests of what a command wrote, by name, without what says when it was written and how long it took."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name not in TELLS_TIME:
            found[str(path.relative_to(directory))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


# Manifests, times of layers and of runs, and the pages that show them.
TELLS_TIME = (
    "qtk-manifest.json",
    "quantization-log.jsonl",
    "result.json",
    "qtk-run.json",
    "report.md",
    "report.html",
    "training.json",
    "metrics.jsonl",
    "engine.json",
    "README.md",
)


def left_behind(out: Path) -> list[str]:
    """What lies beside `out` that is neither it nor of the workshop: hidden files and unfinished directories of its name."""
    return sorted(path.name for path in out.parent.iterdir() if out.name in path.name and path != out)


def is_complete(directory: Path) -> bool:
    manifest = directory / "qtk-manifest.json"
    return manifest.is_file() and "outputs" in json.loads(manifest.read_text())
