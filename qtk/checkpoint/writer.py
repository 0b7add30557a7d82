"""Writes safetensors shards whose layout is known before the first tensor: headers first, then each tensor in its place.

Because names, dtypes and shapes are known beforehand, disk space is reserved at once (a full disk is found before the work,
not after it), tensors may come in any order, none is held in memory, and a resumed run continues in the same files.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qtk.checkpoint.publishing import redact_tree
from qtk.checkpoint.reader import INDEX_NAME, LICENCE_PATTERNS, Checkpoint
from qtk.checkpoint.safetensors_file import format_dtype
from qtk.errors import InputError, MachineError
from qtk.redaction import copy_redacted
from qtk.sizes import size_text

if TYPE_CHECKING:
    import torch

DEFAULT_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class TensorSpec:
    """The dtype and shape of a tensor that will be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Place:
    fd: int
    path: Path
    offset: int
    spec: TensorSpec


class CheckpointWriter:
    """Writes tensors into `directory` as model.safetensors, or as numbered shards with their index."""

    def __init__(
        self,
        directory: Path,
        specs: Mapping[str, TensorSpec],
        *,
        shard_bytes: int = DEFAULT_SHARD_BYTES,
        resume: bool = False,
        file_name: str | None = None,
    ) -> None:
        """Lays the files out and reserves their space. MachineError when the disk has too little room.

        With `resume`, existing files of this very layout keep their data. With `file_name`, everything goes into that one
        file, whatever its size.
        """
        self.directory = directory
        self.specs = dict(specs)
        shards = [self.specs] if file_name else _split(self.specs, shard_bytes)
        names = (
            [file_name or "model.safetensors"]
            if len(shards) == 1
            else [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
        )
        self._fds: list[int] = []
        self._places: dict[str, _Place] = {}
        self._missing = set(self.specs)
        held = sum(_bytes_held(directory / name) for name in names) if resume else 0
        require_room(directory, sum(spec.nbytes for spec in self.specs.values()) - held)
        for name, shard in zip(names, shards, strict=True):
            self._lay_out(directory / name, shard, resume)
        if len(shards) > 1:
            self._write_index(dict(zip(names, shards, strict=True)))

    def _lay_out(self, path: Path, shard: dict[str, TensorSpec], resume: bool) -> None:
        header, end = _header(shard)
        keep = resume and path.is_file() and path.stat().st_size == len(header) + end
        fd = os.open(path, os.O_RDWR | os.O_CREAT | (0 if keep else os.O_TRUNC), 0o644)
        self._fds.append(fd)
        if keep and os.pread(fd, len(header), 0) != header:
            raise InputError(f"{path} was begun with another layout. Remove it, or run without --resume.")
        if not keep:
            try:
                os.posix_fallocate(fd, 0, len(header) + end)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise MachineError(f"{path}: the disk is full; {end} bytes are needed.") from None
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                os.ftruncate(fd, len(header) + end)
            _pwrite_all(fd, memoryview(header), 0)
        offset = len(header)
        for name, spec in shard.items():
            self._places[name] = _Place(fd, path, offset, spec)
            offset += spec.nbytes

    def _write_index(self, shards: dict[str, dict[str, TensorSpec]]) -> None:
        index = {
            "metadata": {"total_size": sum(spec.nbytes for spec in self.specs.values())},
            "weight_map": {name: file for file, shard in shards.items() for name in shard},
        }
        (self.directory / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Writes one tensor in its place; its dtype and shape must be those laid out (a bug otherwise)."""
        place = self._places[name]
        if tensor.dtype != place.spec.dtype or tuple(tensor.shape) != place.spec.shape:
            raise ValueError(f"{name}: laid out as {place.spec}, given {tensor.dtype} {tuple(tensor.shape)}")
        _pwrite_all(place.fd, raw_bytes(tensor), place.offset)
        self._missing.discard(name)

    def write_rows(self, name: str, start: int, rows: torch.Tensor) -> None:
        """Writes rows of a tensor, from row `start` on. The caller calls `mark_written` when all rows are written."""
        place = self._places[name]
        if rows.dtype != place.spec.dtype or tuple(rows.shape[1:]) != place.spec.shape[1:]:
            raise ValueError(f"{name}: laid out as {place.spec}, given rows {rows.dtype} {tuple(rows.shape)}")
        row_bytes = place.spec.nbytes // place.spec.shape[0]
        _pwrite_all(place.fd, raw_bytes(rows), place.offset + start * row_bytes)

    def place(self, name: str, row: int = 0) -> tuple[Path, int]:
        """The file in which row `row` of a tensor stands, and the byte at which it begins."""
        place = self._places[name]
        return place.path, place.offset + (row * (place.spec.nbytes // place.spec.shape[0]) if row else 0)

    def mark_written(self, *names: str) -> None:
        """Records that these tensors are complete (written row by row, or before a resume)."""
        self._missing.difference_update(names)

    @property
    def descriptors(self) -> list[int]:
        """The open files, for callers that keep a resumable state and decide when to flush."""
        return list(self._fds)

    def close(self) -> None:
        """Closes the files. A tensor that was laid out but never written is a bug."""
        if self._missing:
            raise ValueError(f"laid out but never written: {sorted(self._missing)[:5]}")
        self.abandon()

    def abandon(self) -> None:
        """Closes the files without any check, after a failure."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


def _without_secrets(config: bytes) -> bytes:
    """The same bytes where there is no secret, such as a password in the address that a model was once loaded from."""
    content = json.loads(config)
    clean = redact_tree(content)
    return config if clean == content else (json.dumps(clean, indent=2) + "\n").encode()


def copy_companions(source: Checkpoint, directory: Path, *, config: bytes | None = None) -> None:
    """Copies tokenizer and chat template byte for byte, licences without secrets, and config.json verbatim unless one is given
    or it holds a secret."""
    for path in source.companion_files:
        target = directory / path.relative_to(source.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if any(path.match(pattern) for pattern in LICENCE_PATTERNS):
            copy_redacted(path, target)
        else:
            shutil.copyfile(path, target)
    (directory / "config.json").write_bytes(_without_secrets(source.config_bytes if config is None else config))


def _bytes_held(path: Path) -> int:
    """Bytes of the disk that a file kept by a resume already occupies."""
    return min(path.stat().st_size, path.stat().st_blocks * 512) if path.is_file() else 0


def _split(specs: Mapping[str, TensorSpec], shard_bytes: int) -> list[dict[str, TensorSpec]]:
    shards: list[dict[str, TensorSpec]] = [{}]
    used = 0
    for name, spec in specs.items():
        if shards[-1] and used + spec.nbytes > shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = spec
        used += spec.nbytes
    return shards


def _header(shard: Mapping[str, TensorSpec]) -> tuple[bytes, int]:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, spec in shard.items():
        entries[name] = {
            "dtype": format_dtype(spec.dtype),
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the data to 8 bytes, as the safetensors package does
    return len(text).to_bytes(8, "little") + text, offset


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor as they stand in a file."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if not flat.numel():
        return memoryview(b"")
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def _pwrite_all(fd: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


def require_room(directory: Path, needed: int) -> None:
    """MachineError unless the disk of `directory` has `needed` bytes free."""
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise MachineError(
            f"{directory}: {size_text(needed)} are needed and the disk has {size_text(free)} free. "
            "Free some room, or write to another disk."
        )
