"""The parts of a bundle: the directories of its chain, which of them is released, and for which runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qtk.checkpoint.manifest import MANIFEST_NAME, InputRecord, file_digest, read_manifest
from qtk.checkpoint.publishing import found_path
from qtk.engines.description import is_engine, read_description
from qtk.errors import InputError
from qtk.quantization.formats.gguf_checkpoint import is_gguf_directory
from qtk.release.material import Made
from qtk.release.starting import STARTERS, Startable
from qtk.targets.runtimes import RUNTIMES

_MODELS = ("merge", "quantized-model", "unpacked-model")


@dataclass(frozen=True)
class ChainPart:
    """A directory of the chain under a name that no other one has."""

    name: str
    made: Made


@dataclass(frozen=True)
class ChainStart:
    """An input that no manifest of the chain describes further: what the chain begins with. directory: where it lies, if it is on
    this machine."""

    record: InputRecord
    directory: Path


def chain_parts(directories: Sequence[Path]) -> list[ChainPart]:
    """The directories and, behind them, every one on this machine that they were made from and that has a manifest."""
    found: dict[Path, Made] = {}
    waiting = [path.resolve() for path in directories]
    while waiting:
        path = waiting.pop(0)
        if path in found or not (path / MANIFEST_NAME).is_file():
            continue
        found[path] = made_in_chain(path)
        waiting += [
            source for record in found[path].manifest.inputs if (source := found_path(record.path, path)).is_dir()
        ]
    names: dict[str, Made] = {}
    for made in found.values():
        name, number = made.name, 2
        while name in names:
            name, number = f"{made.name}-{number}", number + 1
        names[name] = made
    return [ChainPart(name, made) for name, made in names.items()]


def made_in_chain(path: Path) -> Made:
    """A directory with its manifest and that manifest's digest."""
    return Made(path, read_manifest(path), file_digest(path / MANIFEST_NAME).sha256)


def chain_starts(parts: Sequence[ChainPart]) -> list[ChainStart]:
    """The inputs that no manifest describes further, each once."""
    known = {part.made.sha256 for part in parts}
    starts: dict[str, ChainStart] = {}
    for part in parts:
        for record in part.made.manifest.inputs:
            if record.manifest_sha256 not in known:
                starts.setdefault(record.model_dump_json(), ChainStart(record, found_path(record.path, part.made.path)))
    return list(starts.values())


def lineage(artefact: ChainPart, parts: Sequence[ChainPart]) -> Iterator[ChainPart]:
    """The artefact, and what it was made from, nearest first."""
    by_digest = {part.made.sha256: part for part in parts}
    waiting, seen = [artefact], set()
    while waiting:
        part = waiting.pop(0)
        if part.name in seen:
            continue
        seen.add(part.name)
        yield part
        sources = (record.manifest_sha256 for record in part.made.manifest.inputs)
        waiting += [by_digest[digest] for digest in sources if digest in by_digest]


def artefact_of(parts: Sequence[ChainPart], directories: Sequence[Path], take: str | None) -> ChainPart:
    """The part that is released: the one that `take` names, else the last quantized engine, engine, quantized model or merged
    model. InputError where there is none."""
    own = {path.resolve() for path in directories}
    choice = [part for part in parts if _releasable(part)]
    if take is not None:
        named = [part for part in choice if part.name == take]
        if not named:
            there = ", ".join(part.name for part in choice) or "none"
            raise InputError(f"--take {take}: there is no model or engine of that name. There are: {there}.")
        return named[0]
    choice = [part for part in choice if part.made.path in own]
    if not choice:
        raise InputError("There is neither an engine nor a model, so there is nothing to bundle.")
    order = [part for path in directories for part in choice if part.made.path == path.resolve()]
    return max(enumerate(order), key=lambda pair: (_rank(pair[1]), pair[0]))[1]


def _releasable(part: ChainPart) -> bool:
    return part.made.manifest.kind in _MODELS or is_engine(part.made.path)


def _rank(part: ChainPart) -> int:
    if is_engine(part.made.path):
        return 3 if read_description(part.made.path).quantization is not None else 2
    return 1 if part.made.manifest.kind == "quantized-model" else 0


def startable(artefact: ChainPart, name: str, runtime: str | None) -> Startable:
    """The artefact as its runtime starts it. InputError for a runtime that does not take it."""
    path, manifest = artefact.made.path, artefact.made.manifest
    if is_engine(path):
        engine = read_description(path)
        if runtime not in (None, engine.backend):
            raise InputError(f"{artefact.name} is an engine of {engine.backend}; --runtime {runtime} cannot run it.")
        return Startable(name, engine.backend, engine)
    taking = _runtimes(artefact)
    if runtime is not None and runtime not in taking:
        raise InputError(
            f"{artefact.name} is not taken by {runtime}. It is taken by: {', '.join(taking) or 'no runtime'}."
        )
    if not taking:
        raise InputError(f"{artefact.name} is taken by no runtime that qtk knows, so nothing could start the bundle.")
    wanted = runtime or manifest.options.get("backend")
    gguf = next((file.name for file in path.glob("*.gguf")), "") if is_gguf_directory(path) else ""
    return Startable(
        name,
        wanted if wanted in taking else taking[0],
        gguf=gguf,
        float_model=manifest.kind != "quantized-model",
        gpu=manifest.options.get("gpu"),
    )


def _runtimes(artefact: ChainPart) -> list[str]:
    """The runtimes that take a checkpoint, in the order in which its report names them."""
    if artefact.made.manifest.kind != "quantized-model":
        return ["vllm"]
    titles = artefact.made.manifest.notes.get("report", {}).get("runtimes", [])
    names = {record.title: name for name, record in RUNTIMES.items()}
    return [names[title] for title in titles if names.get(title) in STARTERS]
