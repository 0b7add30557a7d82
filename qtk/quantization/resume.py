"""What a stopped quantization leaves behind, so that `--resume` goes on after the last finished block.

Beside the output tensors, which are in their final place already, that is the state of the calibration streams, the log
so far, and a fingerprint of everything that decides the result. The activations are kept as they are, so the weights
come out bit for bit as those of a run that was never stopped.

All of it lies in `WORK` of the unfinished directory until there is nothing left to do but the manifest.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qtk.checkpoint.atomic import write_atomic
from qtk.checkpoint.begun import BegunWork
from qtk.checkpoint.staging import flush_file
from qtk.progress import note
from qtk.quantization.blocks.activations import RowStore
from qtk.quantization.report import LayerRecord
from qtk.quantization.unfinished import BEGUN_NAME, STATE_NAME, WORK, unfinished_quantization

# A save survives a killed process by itself; only a flush to the disk survives a lost machine, and costs more.
_FLUSH_SECONDS = 20.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def begin(work: Path, facts: Mapping[str, Any], *, blocks: int, threads: int, compute_dtype: Callable[[], str]) -> str:
    """Takes up what a stopped run on the same terms left in `work`, or empties the directory. Returns the compute dtype.

    facts: whatever decides the result to the last bit, by name. blocks: that are to be quantized, by all methods together.
    threads: that compute. compute_dtype: called at a fresh start only. The dtype is found by timing, and a resumed run must
    compute as the run before it did.
    """
    if unfinished := unfinished_quantization(work):
        for spilled in work.rglob(f"{WORK}/activations-*.bin"):
            spilled.unlink()
        return unfinished.begun.compute_dtype
    clear(work)
    (work / WORK).mkdir()
    dtype = compute_dtype()
    BegunWork.now(facts, total=blocks, unit="block", compute_dtype=dtype, threads=threads).write(
        work / WORK / BEGUN_NAME
    )
    return dtype


def clear(work: Path) -> None:
    """Empties a directory: stale files of another run must not stand beside the new ones."""
    for path in work.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def remove_work(work: Path) -> None:
    """Nothing is left to resume. What says that there is goes first, so that a kill in between leaves no half of a state."""
    for name in (STATE_NAME, BEGUN_NAME):
        (work / WORK / name).unlink(missing_ok=True)
    shutil.rmtree(work / WORK, ignore_errors=True)


def save_finished(work: Path, name: str, content: Mapping[str, Any]) -> None:
    """Records, at once and on the disk, that the part `name` of a run is finished."""
    write_json(work / WORK / f"{name}.finished.json", content, flush=True)


def read_finished(work: Path, name: str) -> dict[str, Any] | None:
    """What `save_finished` recorded, or None."""
    return _read_json(work / WORK / f"{name}.finished.json")


def write_json(path: Path, content: Mapping[str, Any], *, flush: bool) -> None:
    """Writes a file that appears only when it is complete; flushed to the disk on demand."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(content), flush=flush)


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where the file is absent or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


class ResumeState:
    """The saved state of one method in `directory`.

    `blocks` finished blocks and the `records` of their linears; `seconds` and `peak_memory_bytes` over all sessions, this
    one included, whose clock starts here. Zeros and none at a fresh start.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._started = self._flushed_at = time.monotonic()
        self._start_again()
        if (directory / STATE_NAME).is_file():
            self._read()

    def _start_again(self, why: str = "") -> None:
        if why:
            note(f"{why}: starting again.")
        self.blocks = 0
        self.records: tuple[LayerRecord, ...] = ()
        self.seconds = 0.0
        self.peak_memory_bytes = 0
        self._seconds_before = 0.0
        self._file_bytes: list[int] = []

    def _read(self) -> None:
        state = _read_json(self.directory / STATE_NAME)
        if state is None:
            self._start_again("The saved state is damaged")
            return
        if not state["flushed"] and state["boot"] != _boot_id():
            self._start_again(
                "The machine was restarted since the state was saved, and the state had not reached the disk"
            )
            return
        self.blocks, self.records = state["blocks"], tuple(LayerRecord(**line) for line in state["log"])
        self.seconds = self._seconds_before = state["seconds"]
        self.peak_memory_bytes, self._file_bytes = state["peak_memory_bytes"], state["file_bytes"]

    def check(self, streams: list[RowStore]) -> None:
        """Goes back to a fresh start, with a note, where files that belong to the state are missing or incomplete."""
        outputs = sorted(path.stat().st_size for path in self.directory.parent.glob("*.safetensors"))
        whole = all(_size(self._activations(i, self.blocks)) == s.nbytes for i, s in enumerate(streams))
        if self.blocks and not (whole and outputs == self._file_bytes):
            self._start_again(f"{self.directory.parent}: files of the stopped run are missing or incomplete")

    def load(self, streams: list[RowStore]) -> None:
        """Fills the streams with what they held after block `blocks`."""
        for index, store in enumerate(streams):
            store.load(self._activations(index, self.blocks))

    def save(
        self,
        streams: list[RowStore],
        records: Sequence[LayerRecord],
        output_files: list[int],
        peak_memory_bytes: int,
        probe: Path | None = None,
    ) -> None:
        """Records that one more block is finished. records: of its linears; output_files, probe: descriptors of the output and
        the record of the probe, flushed along from time to time; peak_memory_bytes: of this session."""
        self.directory.mkdir(exist_ok=True)
        before, now = self.blocks, time.monotonic()
        self.blocks, self.records = before + 1, (*self.records, *records)
        self.seconds = self._seconds_before + now - self._started
        self.peak_memory_bytes = max(self.peak_memory_bytes, peak_memory_bytes)
        flush = now - self._flushed_at >= _FLUSH_SECONDS
        for index, store in enumerate(streams):
            store.save(self._activations(index, self.blocks), flush=flush)
        if flush:
            for fd in output_files:
                os.fsync(fd)
            if probe is not None:
                flush_file(probe)
            self._flushed_at = time.monotonic()
        state = {
            "blocks": self.blocks,
            "log": [record.model_dump() for record in self.records],
            "seconds": self.seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "file_bytes": sorted(os.fstat(fd).st_size for fd in output_files),
            "flushed": flush,
            "boot": _boot_id(),
        }
        write_json(self.directory / STATE_NAME, state, flush=flush)
        for index in range(len(streams)):
            self._activations(index, before).unlink(missing_ok=True)

    def _activations(self, stream: int, blocks: int) -> Path:
        return self.directory / f"stream-{stream}-after-{blocks}.bin"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""
