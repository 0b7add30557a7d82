"""Results: a directory with the result as JSON and a manifest, and single files that are put in place in one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from qtk.checkpoint.atomic import write_atomic
from qtk.errors import GateFailed, InputError, listing

RESULT_NAME = "result.json"
Result = TypeVar("Result", bound=BaseModel)


def require_writable(path: Path, *, overwrite: bool = False) -> None:
    """InputError when the file `path` cannot be written, so that no minutes of work are lost.

    That is when it is a directory, exists and `overwrite` is not given, or its own directory does not exist.
    """
    if path.is_dir():
        raise InputError(f"{path} is a directory; the name of a file is needed.")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already. Give another name, or --overwrite.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path.parent} is not a directory, so {path.name} cannot be written there.")


def has_manifest(result: Path) -> bool:
    """Whether a result (a directory, or its result.json) has a manifest that names it."""
    from qtk.checkpoint.manifest import MANIFEST_NAME

    directory, name = _place(result)
    if not (directory / MANIFEST_NAME).is_file():
        return False
    from qtk.checkpoint.manifest import read_manifest

    return name in read_manifest(directory).outputs


def require_unchanged(*results: Path) -> None:
    """GateFailed where the files beside a result, or itself, are not those that its manifest records. A result without a
    manifest cannot be checked."""
    from qtk.checkpoint.manifest import file_digest, read_manifest

    changed = []
    for result in filter(has_manifest, results):
        directory, _ = _place(result)
        for name, recorded in read_manifest(directory).outputs.items():
            path = directory / name
            if not path.is_file() or file_digest(path).sha256 != recorded.sha256:
                changed.append(str(path))
    if changed:
        raise GateFailed(f"These files are not what was measured; `qtk verify` says more:\n{listing(changed)}")


def _place(result: Path) -> tuple[Path, str]:
    return (result, RESULT_NAME) if result.is_dir() else (result.parent, result.name)


def write_result(result: BaseModel, path: Path) -> None:
    """Writes the result as indented JSON; the file appears under its name only when it is complete."""
    write_atomic(path, result.model_dump_json(indent=2) + "\n")


@contextmanager
def result_directory(
    out: Path, kind: str, options: BaseModel, inputs: Mapping[str, Path], *, overwrite: bool = False
) -> Iterator[Path]:
    """The new directory `out`, to write results into; it gets a manifest at the end, and exists only when it is complete.

    kind: what the manifest calls it. inputs: role -> a directory whose files are digested, or a single file. InputError for
    a name that ends in .json: such a file was written before results became directories.
    """
    # Imported here, because those who only read results need none of it.
    from qtk.checkpoint.manifest import ManifestRecorder, output_files
    from qtk.checkpoint.staging import staged_directory
    from qtk.peak_memory import PeakMemory

    if out.suffix == ".json":
        raise InputError(
            f"-o names a directory now, into which {RESULT_NAME} is written: give -o {out.with_suffix('')}."
        )
    recorder = ManifestRecorder(kind, options.model_dump(mode="json"))
    staged = staged_directory(out, overwrite=overwrite, inputs=inputs.values())
    with PeakMemory() as memory, staged as directory:
        for role, path in inputs.items():
            recorder.add_input(role, path, output_files(path) if path.is_dir() else [path])
        yield directory
        recorder.write(directory, out, memory.peak_bytes)


def measure_into(
    out: Path,
    kind: str,
    options: BaseModel,
    inputs: Mapping[str, Path],
    measure: Callable[[], Result],
    *,
    overwrite: bool = False,
) -> Result:
    """Runs `measure`, writes its result as `out`/result.json with a manifest, and returns it: a measurement as a link of the
    chain. Errors as of `result_directory`."""
    with result_directory(out, kind, options, inputs, overwrite=overwrite) as directory:
        result = measure()
        write_result(result, directory / RESULT_NAME)
    return result
