"""An adapter directory: its config, and its tensors sorted by what they do to which module.

Names are peft's: `base_model.model.<module>.lora_A.weight` and so on. The prefix may be missing, an adapter's name
(`lora_A.default.weight`) and the prefixes of wrapped models (FSDP, torch.compile) may be there: older versions of peft
and trainers built on it wrote those.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from qtk.adapters.config import WEIGHTS_NAME, AdapterConfig, read_config
from qtk.checkpoint.manifest import FileDigest
from qtk.checkpoint.passing_digest import PassingDigest
from qtk.checkpoint.reader import all_finite
from qtk.checkpoint.safetensors_file import SafetensorsFile, TensorInfo
from qtk.checkpoint.writer import raw_bytes
from qtk.errors import InputError, listing

_PICKLE_NAME = "adapter_model.bin"
_SLICE_BYTES = 1 << 22

_WRAPPERS = re.compile(r"(^|\.)(_fsdp_wrapped_module|_orig_mod)(?=\.)")
_LOW_RANK = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(\.(?!weight$|bias$)[^.]+)?(\.weight)?$"
)
_TOKENS = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta(\.[^.]+)?$")
_SAVED_COPY = re.compile(
    r"(?P<module>.+)\.(?P<copy>modules_to_save|original_module)(\.(?!weight$|bias$)[^.]+)?\.(?P<kind>weight|bias)$"
)
_BASE_LAYER = re.compile(r"(?P<module>.+?)\.(token_adapter\.)?base_layer\.(?P<kind>weight|bias)$")
_PLAIN = re.compile(r"(?P<module>.+)\.(?P<kind>weight|bias)$")


@dataclass
class ModuleParts:
    """Keys in the adapter's file of what it holds for one module. `a`, `b` are the low-rank factors."""

    a: str = ""
    b: str = ""
    embedding: bool = False
    magnitude: str = ""
    tokens: str = ""


@dataclass
class Adapter:
    """One opened adapter. `parts`: module -> its keys; `replaced`: base tensor name -> key that takes its place.

    `base_copy`: embedding or head weight that was saved as it stood below the update (a resized base). A key that is
    sorted nowhere has no place in any base, and is left over.
    """

    path: Path
    config: AdapterConfig
    file: SafetensorsFile
    parts: dict[str, ModuleParts] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)
    base_copy: dict[str, str] = field(default_factory=dict)
    # Copies that peft writes beside a tensor in `replaced`: key -> that tensor's name. It never reads them back.
    twins: dict[str, str] = field(default_factory=dict)
    # Of the weights' file, taken while its values were checked.
    digest: FileDigest | None = None

    def info(self, key: str) -> TensorInfo:
        """dtype and shape of one of the adapter's tensors."""
        return self.file.tensors[key]

    def tensor(self, key: str) -> torch.Tensor:
        """One of the adapter's tensors, as stored."""
        return self.file.read(key)

    @property
    def files(self) -> list[Path]:
        """What a manifest records of it."""
        return [self.path / "adapter_config.json", self.path / WEIGHTS_NAME]


def open_adapter(directory: Path) -> Adapter:
    """Opens an adapter directory. InputError when it is none, is a pickle, is of a refused kind, or holds NaN or Inf."""
    if not directory.is_dir():
        kind = "is not a directory" if directory.exists() else "does not exist"
        raise InputError(f"{directory} {kind}: a directory with adapter_config.json and {WEIGHTS_NAME} is needed.")
    config = read_config(directory)
    if not (directory / WEIGHTS_NAME).is_file():
        if (directory / _PICKLE_NAME).is_file():
            raise InputError(
                f"{directory / _PICKLE_NAME} is a pickle, which can run code when it is loaded, so qtk never opens one. "
                "Where you trust it, load the adapter with peft and save it again: that writes safetensors."
            )
        raise InputError(f"{directory} has no {WEIGHTS_NAME}.")
    adapter = Adapter(directory, config, SafetensorsFile(directory / WEIGHTS_NAME))
    for key in adapter.file.tensors:
        _sort(adapter, key)
    passing = PassingDigest(adapter.file.path)
    _require_finite(adapter, passing)
    return replace(adapter, digest=passing.finish())


def _sort(adapter: Adapter, key: str) -> None:
    name = _WRAPPERS.sub("", key).lstrip(".").removeprefix("base_model.model.")
    if match := _LOW_RANK.match(name):
        parts = adapter.parts.setdefault(match["module"], ModuleParts())
        part = match["part"]
        slot = "magnitude" if part == "lora_magnitude_vector" else part[-1].lower()
        if not getattr(parts, slot):  # a second one (another adapter's name) stays left over
            setattr(parts, slot, key)
        parts.embedding |= "embedding" in part
    elif match := _TOKENS.match(name):
        adapter.parts.setdefault(match["module"], ModuleParts()).tokens = key
    elif match := _SAVED_COPY.match(name):
        target = f"{match['module']}.{match['kind']}"
        adapter.twins[key] = target
        if match["copy"] == "modules_to_save":
            adapter.replaced.setdefault(target, key)
    elif match := _BASE_LAYER.match(name):
        place = adapter.replaced if match["kind"] == "bias" else adapter.base_copy
        place[f"{match['module']}.{match['kind']}"] = key
    elif match := _PLAIN.match(name):
        # Wins over a `modules_to_save` twin: both hold the trained weight, and peft reads this one.
        adapter.replaced[f"{match['module']}.{match['kind']}"] = key


def _require_finite(adapter: Adapter, passing: PassingDigest) -> None:
    tensors = sorted(adapter.file.tensors, key=lambda key: adapter.info(key).offset)
    bad = [key for key in tensors if adapter.info(key).dtype.is_floating_point and not _finite(adapter, key, passing)]
    if bad:
        raise InputError(
            f"{adapter.path / WEIGHTS_NAME} holds NaN or Inf:\n{listing(bad)}\nThe file is damaged or the training diverged."
        )


def _finite(adapter: Adapter, key: str, passing: PassingDigest) -> bool:
    """Whether a tensor holds no NaN or Inf; read a slice at a time, so that a saved embedding is never held whole."""
    info = adapter.info(key)
    rows = info.shape[0] if info.shape else 0
    step = max(1, _SLICE_BYTES * rows // max(info.nbytes, 1))
    finite = True
    for start in range(0, rows, step):
        values = adapter.file.read_rows(key, start, min(start + step, rows))
        passing.show(adapter.file.byte_offset(key, start), raw_bytes(values))
        finite = finite and all_finite(values)
    return finite
