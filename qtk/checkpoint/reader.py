"""A model directory in the Hugging Face layout: config.json, safetensors (sharded or not), companion files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtk.bounded.files import name_inside, read_bounded, require_unchanged
from qtk.checkpoint.json_file import parse_json, read_json
from qtk.checkpoint.safetensors_file import SafetensorsFile, TensorInfo
from qtk.errors import InputError, listing

if TYPE_CHECKING:
    import torch

INDEX_NAME = "model.safetensors.index.json"

# Copied from input to output byte for byte, because re-saving a tokenizer changes it between library versions.
LICENCE_PATTERNS = ("LICENSE*", "NOTICE*", "USE_POLICY*")
COMPANION_PATTERNS = (
    "tokenizer.json",
    "tokenizer.model*",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tekken.json",
    "*.spm",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.tiktoken",
    "chat_template.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
    *LICENCE_PATTERNS,
)
CARD_NAME = (
    "README.md"  # what the hub shows of a model: it is not copied as it stands, because it speaks of another model
)
_FLOATS = ("float64", "float32", "float16", "bfloat16")
_INTEGERS = {"int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1}
_NONE: Mapping[str, int] = {}
# Tables that the model computes, a head that is the embedding, and column orders, which each container refuses in its own words.
_IDLE = re.compile(
    r"(^|\.)(rotary_emb(\.\w+)?|attn\.(masked_)?bias|masked_bias|g_idx|weight_g_idx)$|^(lm_head|transformer\.wte)\.weight$"
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class Checkpoint:
    """Reads a model directory lazily, tensor by tensor.

    `config` is the parsed config.json, `config_bytes` the file as it stands (see `correct_config`). Shards are opened at
    first use. Raises InputError on opening when the directory, config.json or the safetensors files are missing (pickles
    are named and refused), when the index names files outside the directory, and for missing shards (all are listed).
    """

    def __init__(self, directory: Path | str) -> None:
        self.path = Path(directory)
        if not self.path.is_dir():
            kind = "is not a directory" if self.path.exists() else "does not exist"
            raise InputError(f"{self.path} {kind}: a directory with config.json and safetensors files is needed.")
        self.config_bytes = self._config_bytes()
        self.config: dict[str, Any] = parse_json(self.config_bytes, self.path / "config.json")
        self._files: dict[str, SafetensorsFile] = {}
        self._file_of = self._locate()

    def _config_bytes(self) -> bytes:
        try:
            return read_bounded(self.path / "config.json")
        except FileNotFoundError:
            raise InputError(f"{self.path} is not a model directory: config.json is missing.") from None

    def correct_config(self, **changes: Any) -> None:
        """Corrects settings of config.json that contradict the tensors, here and in every directory made from this one."""
        self.config = {**self.config, **changes}
        self.config_bytes = config_bytes(self.config)

    def _locate(self) -> dict[str, str]:
        """Tensor name -> file name, from the index or from the one safetensors file."""
        index_path = self.path / INDEX_NAME
        if index_path.is_file():
            return self._from_index(index_path)
        single = sorted(self.path.glob("*.safetensors"))
        if len(single) == 1:
            return self._in_file_order(dict.fromkeys(self._open(single[0].name).tensors, single[0].name))
        if single:
            raise InputError(
                f"{self.path} has {len(single)} safetensors files, but no {INDEX_NAME} that says what each one holds."
            )
        pickles = sorted(p.name for pattern in _PICKLES for p in self.path.glob(pattern))
        if pickles:
            raise InputError(
                f"{self.path} holds pickle files and no safetensors:\n{listing(pickles)}\n"
                "A pickle can run code when it is loaded, so qtk never opens one. If you trust it, convert it to "
                "safetensors: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)."
            )
        raise InputError(f"{self.path} has no safetensors file.")

    def _from_index(self, index_path: Path) -> dict[str, str]:
        index = read_json(index_path)
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
            raise InputError(f"{index_path} has no weight_map from tensor names to file names.")
        files = sorted(set(weight_map.values()))
        hostile = [f for f in files if f in ("", ".", "..") or Path(f).name != f or "\\" in f or "\0" in f]
        if hostile:
            raise InputError(f"{index_path} names files outside its directory:\n{listing(map(repr, hostile))}")
        if long := [f"{f[:60]}..." for f in files if not _is_name(f)]:
            raise InputError(f"{index_path} names files that cannot be:\n{listing(long)}")
        missing = [f for f in files if not (self.path / f).is_file()]
        if missing:
            raise InputError(
                f"{self.path}: {len(missing)} of {len(files)} shards are missing:\n{listing(missing)}\n"
                "Copy or download the model again."
            )
        absent = [f"{name} (in {f})" for name, f in weight_map.items() if name not in self._open(f).tensors]
        if absent:
            raise InputError(f"{index_path} lists tensors that their shard does not hold:\n{listing(absent)}")
        return self._in_file_order(weight_map)

    def _in_file_order(self, file_of: Mapping[str, str]) -> dict[str, str]:
        """Files by name, in each the tensors by their place: so that who reads them in this order reads straight on."""
        return dict(sorted(file_of.items(), key=lambda item: (item[1], self._open(item[1]).tensors[item[0]].offset)))

    def _open(self, file_name: str) -> SafetensorsFile:
        if file_name not in self._files:
            self._files[file_name] = SafetensorsFile(self.path / file_name)
        return self._files[file_name]

    @property
    def names(self) -> list[str]:
        """Tensor names in the order of the files."""
        return list(self._file_of)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def info(self, name: str) -> TensorInfo:
        """dtype, shape and place of a tensor, without reading it."""
        return self.file(name).tensors[name]

    def file(self, name: str) -> SafetensorsFile:
        """The open file that holds tensor `name`."""
        if name not in self._file_of:
            raise InputError(f"{self.path} has no tensor {name}.")
        return self._open(self._file_of[name])

    def tensor(self, name: str, *, finite: bool = False) -> torch.Tensor:
        """Reads one tensor. With `finite`, raises InputError (naming it) when it holds NaN or Inf."""
        tensor = self.file(name).read(name)
        if finite:
            require_finite(tensor, f"{self.path}: tensor {name}")
        return tensor

    def pieces(self, name: str, size: int = 1 << 22) -> Iterator[bytearray]:
        """The stored bytes of tensor `name`, at most `size` at a time. They need no torch."""
        return self.file(name).pieces(name, size)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows start..stop-1 of a tensor. Only these are read."""
        return self.file(name).read_rows(name, start, stop)

    def require_tensors(self, expected: Mapping[str, tuple[int, ...]], integers: Mapping[str, int] = _NONE) -> None:
        """InputError listing every tensor that is missing, has another shape than expected or another kind of dtype, and every one
        that is not expected: it would change the model, and nobody would use it.

        integers: the names of those that hold whole numbers, with the bytes of each (0: any); the others are floats. Tables that
        old checkpoints hold, a tied head that was saved too, and biases of zeros may be there.
        """
        faults = self._unlike(expected, integers) + self._unknown(expected)
        if faults:
            raise InputError(f"{self.path} does not hold what its config.json describes:\n{listing(faults)}")

    def _unlike(self, expected: Mapping[str, tuple[int, ...]], integers: Mapping[str, int]) -> list[str]:
        faults = []
        for name, shape in expected.items():
            if name not in self:
                faults.append(f"{name}: missing")
            elif self.info(name).shape != shape:
                faults.append(f"{name}: shape {list(self.info(name).shape)}, config.json says {list(shape)}")
            else:
                stored = self.info(name).dtype_name
                if name not in integers and stored not in _FLOATS:
                    faults.append(f"{name}: stored as {stored}, and floats are needed")
                elif name in integers and integers[name] not in (0, _INTEGERS.get(stored)):
                    faults.append(f"{name}: stored as {stored}, and whole numbers of {integers[name]} bytes are needed")
                elif name in integers and stored not in _INTEGERS:
                    faults.append(f"{name}: stored as {stored}, and whole numbers are needed")
        return faults

    def _unknown(self, expected: Mapping[str, tuple[int, ...]]) -> list[str]:
        names = [name for name in self.names if name not in expected and not _IDLE.search(name)]
        return [f"{name}: unknown to this architecture" for name in names if not self._is_zero_bias(name)]

    def _is_zero_bias(self, name: str) -> bool:
        """Whether a tensor is a bias that adds nothing: tools write such beside every linear that they quantize."""
        info = self.info(name)
        small = name.endswith(".bias") and len(info.shape) == 1 and info.dtype_name in _FLOATS
        return small and not bool(self.tensor(name).any())

    @property
    def weight_files(self) -> list[Path]:
        """The safetensors files in order, then the index where there is one."""
        files = [self.path / f for f in dict.fromkeys(self._file_of.values())]
        index = self.path / INDEX_NAME
        return files + ([index] if index.is_file() else [])

    @property
    def companion_files(self) -> list[Path]:
        """Tokenizer, chat template and licence files, which are copied byte for byte into every output directory."""
        return sorted({p for pattern in COMPANION_PATTERNS for p in self.path.glob(pattern) if p.is_file()})

    @property
    def files(self) -> list[Path]:
        """Every file of this checkpoint that a manifest records."""
        return [self.path / "config.json", *self.weight_files, *self.companion_files]

    def require_unchanged(self) -> None:
        """InputError naming the weight files that have been written to since they were opened: what was read of them may be
        of two models."""
        require_unchanged({file.path: file.opened_as for file in self._files.values()})

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()


def _is_name(text: str) -> bool:
    try:
        return bool(name_inside(text))
    except ValueError:
        return False


def config_bytes(config: Mapping[str, Any]) -> bytes:
    """A config as the bytes of a config.json; letters beyond ASCII are not escaped."""
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def require_finite(tensor: torch.Tensor, what: str) -> None:
    """InputError "`what` holds NaN or Inf" unless every element is finite."""
    if not all_finite(tensor):
        import torch

        bad = int((~torch.isfinite(tensor.float())).sum())
        raise InputError(f"{what} holds {bad} NaN or Inf values. The file is damaged or the training diverged.")


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no element is NaN or Inf. Both show in the extremes, so one pass without a temporary tensor is enough."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    import torch

    low, high = torch.aminmax(tensor if tensor.dtype.itemsize > 1 else tensor.float())
    return math.isfinite(low.item()) and math.isfinite(high.item())


def total_bytes(checkpoint: Checkpoint, names: Iterable[str] | None = None) -> int:
    """Bytes of the named tensors (default: all)."""
    return sum(checkpoint.info(name).nbytes for name in (checkpoint.names if names is None else names))
