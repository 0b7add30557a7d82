"""The commands that write, on the workshop's files, each in seconds, and what their outputs hold."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.conftest import Workshop
from support.confined import Confined

Words = tuple[object, ...]
_SMALL = ("--samples", 2, "--seq-len", 16, "--group-size", 32, "--threads", 1)
_ENGINE = ("--max-input-len", 16, "--max-output-len", 16)


def _finetune(w: Workshop, out: Path) -> Words:
    words = ("finetune", w.m, "--data", w.root / "chats.jsonl", "-o", out, "--epochs", 3, "--rank", 2, "--seq-len", 192)
    kept = ("--checkpoint-every", 1, "--evaluate-every", 2)  # so that a kill can find something to go on from
    return (
        *words, *kept, "--batch-size", 4, "--micro-batch", 2, "--threads", 1, "--device", "cpu", "--chat-format", "codefuse",
    )  # fmt: skip


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
    "bundle": lambda w, out: ("bundle", w.e, "-o", out),
}  # fmt: skip


# Commands that keep what they had done when they fail, for --resume.
RESUMED = [name for name in COMMANDS if name.startswith("quantize ")] + ["bench accuracy", "finetune", "bundle"]

# Commands with so many calls, or so long ones, that not each of their calls has its turn.
SLOW = ("quantize gptq default", "quantize gptq best", "quantize awq", "quantize auto", "run", "finetune")

# Keys whose values are times, or memory that depends on them. Files that repeat these, or digests of what has them, are left to
# `qtk verify`, or are no part of a result.
_TELL_TIME = {"seconds", "tokens_per_second", "peak_memory_bytes"}
_HOLD_TIMES = ("qtk-manifest.json", "qtk-run.json", "report.md", "report.html", "SHA256SUMS", "events.out.tfevents.0")


def contents(directory: Path) -> dict[str, str]:
    """The digests of what a command wrote, by name, without what says when it was written and how long it took."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(_timeless(path)).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in _HOLD_TIMES
    }


def _timeless(path: Path) -> bytes:
    if path.suffix == ".json":
        return json.dumps(_without_times(json.loads(path.read_bytes()))).encode()
    if path.suffix == ".jsonl":
        return b"".join(json.dumps(_without_times(json.loads(line))).encode() for line in path.open())
    return path.read_bytes()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(inner) for key, inner in value.items() if key not in _TELL_TIME}
    return [_without_times(inner) for inner in value] if isinstance(value, list) else value


def require_whole_or_absent(confined: Confined, out: Path, where: str) -> None:
    """What stands under a final name verifies: `out`, or each step's directory of a run, which may have none yet."""
    done = [out] if out.exists() else []
    if done and not (out / "qtk-manifest.json").exists() and all(map(_belongs_to_a_run, out.iterdir())):
        done = [path for path in out.glob("*") if path.is_dir() and path.suffix != ".partial"]
    for directory in done:
        verified = confined.run("verify", directory)
        assert verified.code == 0, f"{where}: {verified.said}"


def _belongs_to_a_run(path: Path) -> bool:
    return path.is_dir() or path.name.startswith(("qtk-run.json", "recipe.yaml", "."))


def empty(folder: Path) -> Path:
    """Makes a folder that holds nothing. Outputs repeat their own names, so those that are compared lie in two folders."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def left_behind(out: Path) -> list[str]:
    """What lies beside `out`, in a directory that was made for it alone."""
    return sorted(path.name for path in out.parent.iterdir() if path != out)
