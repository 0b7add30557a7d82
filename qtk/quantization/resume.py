"""What a stopped quantization leaves behind, so that `--resume` goes on after the last finished block.

Beside the output tensors, which are in their final place already, that is the state of the calibration streams, the log
so far, and a fingerprint of everything that decides the result. The activations are kept as they are, so the weights
come out bit for bit as those of a run that was never stopped.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from qtk.checkpoint.manifest import canonical_digest
from qtk.errors import InputError
from qtk.progress import note
from qtk.quantization.activations import RowStore

_STATE = "state.json"
# A save survives a killed process by itself; only a flush to the disk survives a lost machine, and costs more.
_FLUSH_SECONDS = 20.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class ResumeState:
    """The saved state in `directory`. `blocks` finished blocks and their `log` lines; 0 and none at a fresh start."""

    def __init__(self, directory: Path, facts: dict[str, Any]) -> None:
        """facts: whatever decides the result; a state saved under other facts is refused (InputError)."""
        self.directory = directory
        self.fingerprint = canonical_digest(facts)
        self.blocks = 0
        self.log: list[dict[str, Any]] = []
        self._flushed_at = time.monotonic()
        if (directory / _STATE).is_file():
            self._read()

    def _read(self) -> None:
        state = json.loads((self.directory / _STATE).read_text(encoding="utf-8"))
        if state["fingerprint"] != self.fingerprint:
            raise InputError(
                f"{self.directory.parent} was begun from another model or with other options, so it cannot be resumed. "
                "Run without --resume to start again."
            )
        if not state["flushed"] and state["boot"] != _boot_id():
            note(
                "The machine was restarted since the state was saved, and the state had not reached the disk: starting again."
            )
            shutil.rmtree(self.directory)
            return
        self.blocks, self.log = state["blocks"], state["log"]

    def load(self, streams: list[RowStore]) -> None:
        """Fills the streams with what they held after block `blocks`."""
        for index, store in enumerate(streams):
            store.load(self._activations(index, self.blocks))

    def save(self, blocks: int, streams: list[RowStore], log: list[dict[str, Any]], output_files: list[int]) -> None:
        """Records that `blocks` blocks are finished. output_files: descriptors of the output, flushed along from time to time."""
        self.directory.mkdir(exist_ok=True)
        flush = time.monotonic() - self._flushed_at >= _FLUSH_SECONDS
        for index, store in enumerate(streams):
            store.save(self._activations(index, blocks), flush=flush)
        if flush:
            for fd in output_files:
                os.fsync(fd)
            self._flushed_at = time.monotonic()
        state = {"fingerprint": self.fingerprint, "blocks": blocks, "log": log, "flushed": flush, "boot": _boot_id()}
        unfinished = self.directory / f"{_STATE}.unfinished"
        with open(unfinished, "w", encoding="utf-8") as out:
            json.dump(state, out)
            if flush:
                out.flush()
                os.fsync(out.fileno())
        os.rename(unfinished, self.directory / _STATE)
        for index in range(len(streams)):
            self._activations(index, self.blocks).unlink(missing_ok=True)
        self.blocks = blocks

    def remove(self) -> None:
        """The work is complete: nothing is left to resume."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _activations(self, stream: int, blocks: int) -> Path:
        return self.directory / f"stream-{stream}-after-{blocks}.bin"


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""
