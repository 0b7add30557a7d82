"""A safetensors file: its header, and its tensors, read by pread.

The format (https://github.com/huggingface/safetensors): 8 bytes little-endian header length, a JSON object
{name: {dtype, shape, data_offsets}}, then the data. The `safetensors` package maps the file into memory, so that the
resident size counts every page ever touched. Reading by pread keeps memory at what the caller holds.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtk.bounded.files import file_state
from qtk.bounded.parsing import parse_bounded_json
from qtk.errors import InputError

if TYPE_CHECKING:
    import torch

# The format's name of a dtype -> torch's name, and the bytes of an element. Strings, because headers are read by
# commands that do without torch.
DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
}
_FORMAT_NAMES = {torch_name: name for name, (torch_name, _) in DTYPES.items()}
# A header of this many bytes describes 300,000 tensors, more than any model has. The format allows three times as much.
_HEADER_LIMIT = 32_000_000
_LONGEST_NAME = 1000


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: its dtype by torch's name ("bfloat16"), shape, byte offset in its file, number of bytes."""

    dtype_name: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def dtype(self) -> torch.dtype:
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype_name)
        return dtype


def format_dtype(dtype: torch.dtype) -> str:
    """What the format calls a dtype ("BF16"). KeyError for one that it lacks."""
    return _FORMAT_NAMES[str(dtype).removeprefix("torch.")]


def _is_entry(entry: Any) -> bool:
    """Whether a header's entry has the fields of a tensor, with values of the right type. A fraction is not rounded."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        return False
    return all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, *offsets))


class SafetensorsFile:
    """A safetensors file opened for reading. Thread-safe, because every read names its own offset.

    opened_as: its `file_state` at that time."""

    def __init__(self, path: Path) -> None:
        """Reads and checks the header. Raises InputError for a file that is missing, truncated or of another format."""
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))  # a pipe must not hang
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
        try:
            self.tensors, self.metadata = self._read_header()
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> tuple[dict[str, TensorInfo], dict[str, str]]:
        status = os.fstat(self._fd)
        self.opened_as = file_state(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{self.path}: no such file (expected a .safetensors file).")
        size = status.st_size
        start = os.pread(self._fd, 8, 0)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length < 2 or length > min(_HEADER_LIMIT, size - 8):
            raise InputError(f"{self.path} is not a safetensors file, or is truncated ({size} bytes).")
        try:
            header = parse_bounded_json(os.pread(self._fd, length, 8))
            if not isinstance(header, dict):
                raise ValueError("it is not a JSON object")
            metadata = header.pop("__metadata__", {})
            tensors = {name: self._entry(name, entry, 8 + length, size) for name, entry in header.items()}
            self._require_apart(tensors)
        except InputError:
            raise
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise InputError(f"{self.path} is not a safetensors file: its header cannot be read ({error}).") from None
        return tensors, metadata if isinstance(metadata, dict) else {}

    def _require_apart(self, tensors: Mapping[str, TensorInfo]) -> None:
        """InputError where two tensors claim the same bytes."""
        end, before = 0, ""
        for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
            if info.nbytes and info.offset < end:
                raise InputError(
                    f"{self.path}: the tensors {before} and {name} lie on the same bytes. The file is damaged."
                )
            if info.nbytes:
                end, before = info.offset + info.nbytes, name

    def _entry(self, name: str, entry: Any, data_start: int, file_size: int) -> TensorInfo:
        if len(name) > _LONGEST_NAME:
            raise InputError(f"{self.path}: the name of a tensor has {len(name)} letters: {name[:60]}...")
        if not _is_entry(entry):
            raise InputError(
                f"{self.path} is not a safetensors file: the entry of tensor {name} is malformed: a dtype, a shape and two "
                "data_offsets, all whole numbers of 0 or more, are needed. Copy or download the file again."
            )
        if entry["dtype"] not in DTYPES:
            raise InputError(f"{self.path}: tensor {name} has dtype {entry['dtype']}, which qtk does not read.")
        dtype_name, item_bytes = DTYPES[entry["dtype"]]
        shape = tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        nbytes = math.prod(shape) * item_bytes
        if end - begin != nbytes:
            raise InputError(
                f"{self.path}: tensor {name} has {nbytes} bytes by its shape, but {end - begin} by its offsets."
            )
        if data_start + end > file_size:
            raise InputError(
                f"{self.path} is truncated: tensor {name} ends at byte {data_start + end}, the file at {file_size}. "
                "Copy or download it again."
            )
        return TensorInfo(dtype_name, shape, data_start + begin, nbytes)

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor `name` in its stored dtype and shape, as a copy in memory."""
        info = self.tensors[name]
        return self._bytes(info.offset, info.nbytes).view(info.dtype).reshape(info.shape)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows start..stop-1 (of the first dimension) of tensor `name`. The rest is not read."""
        info = self.tensors[name]
        row_bytes = info.nbytes // info.shape[0] if info.shape[0] else 0
        raw = self._bytes(info.offset + start * row_bytes, (stop - start) * row_bytes)
        return raw.view(info.dtype).reshape(stop - start, *info.shape[1:])

    def read_rows_into(self, name: str, start: int, out: torch.Tensor) -> None:
        """Fills `out` ([rows, ...], contiguous, of the stored dtype) with rows of tensor `name`, from row `start` on."""
        info = self.tensors[name]
        if out.dtype != info.dtype or tuple(out.shape[1:]) != info.shape[1:] or not out.is_contiguous():
            raise ValueError(f"{name} is {info.dtype} {info.shape}: cannot be read into {out.dtype} {tuple(out.shape)}")
        row_bytes = info.nbytes // info.shape[0] if info.shape[0] else 0
        import torch

        raw = memoryview(out.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        self._fill(raw, info.offset + start * row_bytes)

    def will_read(self, name: str) -> None:
        """Lets the disk begin to read tensor `name`."""
        info = self.tensors[name]
        os.posix_fadvise(self._fd, info.offset, info.nbytes, os.POSIX_FADV_WILLNEED)

    def pieces(self, name: str, size: int) -> Iterator[bytearray]:
        """The stored bytes of tensor `name`, at most `size` at a time. They need no torch."""
        info = self.tensors[name]
        for start in range(0, info.nbytes, size):
            piece = bytearray(min(size, info.nbytes - start))
            self._fill(memoryview(piece), info.offset + start)
            yield piece

    def _bytes(self, offset: int, count: int) -> torch.Tensor:
        import torch

        raw = torch.empty(count, dtype=torch.uint8)
        self._fill(memoryview(raw.numpy()), offset)  # type: ignore[arg-type]
        return raw

    def _fill(self, view: memoryview, offset: int) -> None:
        done, count = 0, len(view)
        while done < count:
            got = os.preadv(self._fd, [view[done:]], offset + done)
            if got == 0:
                raise InputError(f"{self.path} is truncated: {count - done} bytes are missing at byte {offset + done}.")
            done += got

    def byte_offset(self, name: str, row: int = 0) -> int:
        """Where row `row` of tensor `name` begins in the file."""
        info = self.tensors[name]
        return info.offset + (row * (info.nbytes // info.shape[0]) if row else 0)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()
