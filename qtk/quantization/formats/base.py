"""What a checkpoint format is: how a QuantizedLinear is laid out in tensors, and what config.json says about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from qtk.checkpoint.reader import Checkpoint
from qtk.checkpoint.writer import TensorSpec
from qtk.models.spec import LM_HEAD_MODULE
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.scheme_model import LinearScheme, QuantizationScheme


class Format(Protocol):
    """One container. `name` is what --format takes; `quant_method` is what config.json calls it.

    Formats derive from this class, so that those which need no more than one linear at a time inherit the empty
    `scheme_refusals`, `checkpoint_refusals`, `extra_files`, `finish` and `faults`.
    """

    name: str
    quant_method: str
    # Tensors of a linear (the last part of their names) that other tools leave out, and that `unpack` can do without.
    may_lack: tuple[str, ...] = ()

    def refusals(self, module: str, shape: tuple[int, int], scheme: LinearScheme) -> list[str]:
        """Why this linear ([out, in]) cannot be stored so; empty when it can."""
        ...

    def scheme_refusals(self, scheme: QuantizationScheme) -> list[str]:
        """Why this combination of linears cannot be stored so, each by itself though it can; empty when it can."""
        return []

    def checkpoint_refusals(self, checkpoint: Checkpoint) -> list[str]:
        """Why this model cannot be stored so, whatever its scheme: asked before any work; empty when it can."""
        return []

    def specs(self, module: str, shape: tuple[int, int], scheme: LinearScheme) -> dict[str, TensorSpec]:
        """Full tensor name -> spec of what `pack` will return."""
        ...

    def pack(self, module: str, linear: QuantizedLinear) -> dict[str, torch.Tensor]:
        """The tensors of one quantized linear by full name."""
        ...

    def quantization_config(self, scheme: QuantizationScheme) -> dict[str, Any]:
        """The `quantization_config` of config.json."""
        ...

    def extra_files(self, scheme: QuantizationScheme) -> dict[str, bytes]:
        """Files that this container has beside config.json: name -> content."""
        return {}

    def finish(self, directory: Path) -> None:
        """Adds what is made from the finished checkpoint in `directory`: called when all but the manifest is there."""
        return None

    def faults(self, directory: Path) -> list[str]:
        """What is wrong in the files that `finish` made, by what the checkpoint beside them holds; empty when nothing is."""
        return []

    def read_scheme(self, checkpoint: Checkpoint, modules: Mapping[str, tuple[int, int]]) -> QuantizationScheme:
        """The scheme of a checkpoint in this format; InputError for a variant that qtk does not read."""
        ...

    def unpack(self, checkpoint: Checkpoint, module: str, scheme: LinearScheme) -> QuantizedLinear:
        """Reads one quantized linear back."""
        ...


def one_setting_refusals(name: str, scheme: QuantizationScheme) -> list[str]:
    """A sentence for each linear whose settings differ from the default, for containers that know one setting and float."""
    default = scheme.default
    return [
        f"{module}: {other.bits} bits in groups of {other.group_size}; the {name} container holds one setting for all "
        f"linears (here {default.bits} bits in groups of {default.group_size}) or float"
        for module, other in scheme.overrides().items()
        if other.quantized and (other.bits, other.group_size) != (default.bits, default.group_size)
    ]


def float_modules(scheme: QuantizationScheme) -> list[str]:
    """Full names of the linears left in float, lm_head among them also where it is tied and so no linear of its own."""
    names = [module for module, linear in scheme.modules.items() if not linear.quantized]
    return names if LM_HEAD_MODULE in scheme.modules else [*names, LM_HEAD_MODULE]
