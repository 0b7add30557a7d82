"""The command that usually comes next, from what a command has made: from the manifest, not from the command."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

from qtk.checkpoint.manifest import MANIFEST_NAME, Manifest, read_manifest

_MEASURED = ("divergence", "accuracy", "acceptance", "accuracy-comparison", "leaderboard")


def next_step(made: Path) -> list[str] | None:
    """The words of the command that comes next after the directory `made`; None where nothing does, or qtk did not write it.

    A new directory gets a name that is free beside `made`.
    """
    if not (made / MANIFEST_NAME).is_file():
        return None
    manifest = read_manifest(made)
    match manifest.kind:
        case "merge":
            return ["qtk", "quantize", str(made), "-o", _free(made, "int4")]
        case "quantized-model":
            return _after_quantize(made, manifest)
        case "engine":
            return _after_build(made, manifest)
        case "latency":
            return _divergence(made, manifest)
        case "bundle":
            return ["qtk", "verify", str(made)]
        case kind if kind in _MEASURED:
            return ["qtk", "report", str(made.parent), "-o", _free(made, "report")]
        case _:
            return None


def after_plan(model: Path, gpu: str, backend: str | None) -> list[str]:
    """The words of the command that follows on a plan that fits. backend: None where it was left to qtk."""
    config = model / "config.json"
    quantized = config.is_file() and "quantization_config" in json.loads(config.read_bytes())
    words = ["build-engine", str(model), "-o", "engine"] if quantized else ["quantize", str(model), "-o", "int4"]
    return ["qtk", *words, "--gpu", gpu, *(["--backend", backend] if backend else [])]


def after_run(run_dir: Path, recipe: str, *, complete: bool) -> list[str]:
    """The words of the command that follows on a run: the rest of its stages, or the check of its chain."""
    return ["qtk", "verify", str(run_dir)] if complete else ["qtk", "run", recipe, "-o", str(run_dir), "--resume"]


def _after_quantize(made: Path, manifest: Manifest) -> list[str] | None:
    """An engine, where qtk builds one for the target that the weights were made for; else the divergence."""
    from qtk.targets.runtimes import engine_runtimes

    gpu, backend = manifest.options.get("gpu") or "cpu", manifest.options.get("backend", "auto")
    if backend not in ("auto", *engine_runtimes()) or manifest.options.get("container") == "gguf":
        return _divergence(made, manifest)
    words = ["qtk", "build-engine", str(made), "-o", _free(made, "engine"), "--gpu", str(gpu)]
    return words if backend == "auto" else [*words, "--backend", str(backend)]


def _after_build(made: Path, manifest: Manifest) -> list[str]:
    from qtk.engines.description import finishing_command, read_description

    engine = read_description(made)
    if not engine.built:
        return shlex.split(finishing_command(made))
    if engine.gpu == "cpu":
        return ["qtk", "bench", "latency", str(made), "-o", _free(made, "latency")]
    words = ["qtk", "accept", str(made), "-o", _free(made, "acceptance")]
    checkpoint = _source(made, manifest)
    return words if checkpoint is None else [*words, "--reference", _short(checkpoint)]


def _divergence(made: Path, manifest: Manifest) -> list[str] | None:
    """The divergence of a model or engine from the float model that it comes from, where that is on this machine."""
    measured = made if manifest.kind == "quantized-model" else _source(made, manifest)
    if measured is None:
        return None
    reference: Path | None = measured
    while reference is not None and (own := _manifest(reference)) is not None and own.kind != "merge":
        reference = _source(reference, own)
    if reference is None or reference == measured:
        return None
    words = ["qtk", "bench", "divergence", _short(measured), "--reference", _short(reference)]
    return [*words, "-o", _free(made, "divergence")]


def _manifest(directory: Path) -> Manifest | None:
    return read_manifest(directory) if (directory / MANIFEST_NAME).is_file() else None


def _source(made: Path, manifest: Manifest) -> Path | None:
    """The model or engine that a directory was made from; None where it is not on this machine."""
    roles = ("model", "prepared", "engine")
    found = (made / record.path for record in manifest.inputs if record.role in roles)
    return next((Path(os.path.normpath(path)) for path in found if path.is_dir()), None)


def _free(made: Path, name: str) -> str:
    """The name of a directory to write beside `made`: `name`, or where that is taken, one that says what it is of."""
    place = made.parent / name
    return str(made.parent / f"{made.name}-{name}" if place.exists() else place)


def _short(path: Path) -> str:
    """The path from here, where that is the shorter way to say it."""
    return min(os.path.relpath(path), str(path), key=len)
