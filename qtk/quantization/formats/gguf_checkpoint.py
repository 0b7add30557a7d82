"""A directory whose weights are one GGUF file, read as a checkpoint: under the names, and in the row order, of the model it
was made from.

A float tensor has its usual name. A quantized linear is `MODULE.blocks`, uint8 [out, bytes], the file's rows of blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtk.checkpoint.reader import Checkpoint, require_finite
from qtk.checkpoint.safetensors_file import SafetensorsFile, TensorInfo
from qtk.errors import InputError
from qtk.models.registry import spec_from_config
from qtk.quantization.formats.gguf_file import read_gguf
from qtk.quantization.formats.gguf_names import ARCHITECTURES, NAMES, TABLES

if TYPE_CHECKING:
    import torch

BLOCKS = "blocks"
_DTYPES = {"F32": "float32", "F16": "float16"}


def is_gguf_directory(directory: Path) -> bool:
    """Whether the weights in a directory are a GGUF file, with no safetensors beside it."""
    return any(directory.glob("*.gguf")) and not any(directory.glob("*.safetensors"))


class GgufCheckpoint(Checkpoint):
    """Reads such a directory lazily. InputError for several GGUF files, or one that cannot be read; MachineError without
    the gguf package."""

    def _locate(self) -> dict[str, str]:
        files = sorted(self.path.glob("*.gguf"))
        if len(files) > 1:
            raise InputError(f"{self.path} holds {len(files)} GGUF files; qtk reads a directory with one.")
        self._path = files[0]
        self._tensors: dict[str, Any] = {}
        spec = spec_from_config(self.config, str(self.path / "config.json"))
        interleaved = ARCHITECTURES.get(spec.architecture, ("", False))[1]
        self._heads = {"q_proj": spec.num_heads, "k_proj": spec.num_kv_heads} if interleaved else {}
        for tensor in read_gguf(self._path).tensors:
            if name := _own_name(tensor.name, quantized=tensor.tensor_type.name not in _DTYPES):
                self._tensors[name] = tensor
        return dict.fromkeys(self._tensors, self._path.name)

    def info(self, name: str) -> TensorInfo:
        tensor = self._tensor(name)
        dtype = _DTYPES.get(tensor.tensor_type.name, "uint8")
        return TensorInfo(dtype, tuple(tensor.data.shape), int(tensor.data_offset), int(tensor.n_bytes))

    def file(self, name: str) -> SafetensorsFile:
        raise InputError(f"{self._path} is not a safetensors file, so {name} cannot be read from one.")

    def tensor(self, name: str, *, finite: bool = False) -> torch.Tensor:
        import torch

        tensor = self._in_own_order(name, torch.from_numpy(self._tensor(name).data.copy()))
        if finite:
            require_finite(tensor, f"{self._path}: tensor {name}")
        return tensor

    def pieces(self, name: str, size: int = 1 << 22) -> Iterator[bytearray]:
        data = self._tensor(name).data.reshape(-1).view("uint8")
        for start in range(0, len(data), size):
            yield bytearray(data[start : start + size].tobytes())

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        if name.rsplit(".", 2)[-2] in self._heads:
            return self.tensor(name)[start:stop]
        import torch

        return torch.from_numpy(self._tensor(name).data[start:stop].copy())

    @property
    def weight_files(self) -> list[Path]:
        return [self._path]

    def close(self) -> None:
        self._tensors = {}

    def _tensor(self, name: str) -> Any:
        if name not in self._tensors:
            raise InputError(f"{self.path} has no tensor {name}.")
        return self._tensors[name]

    def _in_own_order(self, name: str, stored: torch.Tensor) -> torch.Tensor:
        heads = self._heads.get(name.rsplit(".", 2)[-2])
        if heads is None:
            return stored
        half = stored.shape[0] // heads // 2
        return stored.view(heads, half, 2, *stored.shape[1:]).transpose(1, 2).reshape(stored.shape)


def _own_name(name: str, *, quantized: bool) -> str:
    """The name in the model that a tensor of the file stands for; empty for what the model does not have."""
    module, _, kind = name.rpartition(".")
    if module.startswith("blk."):
        _, layer, part = module.split(".", 2)
        own = next((own for own, theirs in NAMES.items() if theirs == part), "")
        module = f"model.layers.{layer}.{own}" if own else ""
    else:
        module = next((own for own, theirs in TABLES.items() if theirs == module), "")
    if not module:
        return ""
    return f"{module}.{BLOCKS}" if quantized else f"{module}.{kind}"
