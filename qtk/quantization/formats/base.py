"""What a container is: how a QuantizedLinear is laid out in tensors, and what config.json says about it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qtk.checkpoint.reader import Checkpoint
from qtk.checkpoint.writer import TensorSpec
from qtk.errors import InputError
from qtk.models.spec import LM_HEAD_MODULE, ModelSpec
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.scheme_model import LinearScheme, QuantizationScheme

if TYPE_CHECKING:
    import torch


class FinishedModel(Protocol):
    """What a container may look at of a checkpoint that is complete but for the container's own files."""

    @property
    def checkpoint(self) -> Checkpoint: ...

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def scheme(self) -> QuantizationScheme: ...

    def linear(self, module: str) -> QuantizedLinear | torch.Tensor: ...


class Format(ABC):
    """One container. `name` is what --container takes; `quant_method` is what config.json calls it.

    A container that looks at one linear at a time needs the abstract methods only.
    """

    name: str
    quant_method: str
    # Tensors of a linear (the last part of their names) that a loader copies into the float model as they are, so that their
    # dtype has to be the model's own. `specs` and `pack` give them in float16, and the writer converts them.
    in_model_dtype: tuple[str, ...] = ()
    # Tensors of a linear (the last part of their names) that other tools leave out, and that `unpack` can do without.
    may_lack: tuple[str, ...] = ()

    @abstractmethod
    def refusals(self, module: str, shape: tuple[int, int], scheme: LinearScheme) -> list[str]:
        """Why this linear ([out, in]) cannot be stored in the container; empty when it can."""

    def scheme_refusals(self, scheme: QuantizationScheme) -> list[str]:
        """Why linears that could be stored one by one cannot be stored together; empty when they can."""
        return []

    def checkpoint_refusals(self, checkpoint: Checkpoint) -> list[str]:
        """Why this model cannot be stored in the container, whatever its scheme. Called before any work; empty when it can."""
        return []

    @abstractmethod
    def specs(self, module: str, shape: tuple[int, int], scheme: LinearScheme) -> dict[str, TensorSpec]:
        """Full tensor name -> spec of what `pack` will return."""

    @abstractmethod
    def pack(self, module: str, linear: QuantizedLinear) -> dict[str, torch.Tensor]:
        """The tensors of one quantized linear by full name."""

    @abstractmethod
    def quantization_config(self, scheme: QuantizationScheme, method: str) -> dict[str, Any]:
        """The `quantization_config` of config.json. method: by which the linears were quantized, where the container has a
        place for it."""

    def extra_files(self, scheme: QuantizationScheme) -> dict[str, bytes]:
        """Files that this container has beside config.json: name -> content."""
        return {}

    def file_name(self, model_name: str, scheme: QuantizationScheme) -> str:
        """The file that holds the whole model, of a container that is one file; else empty."""
        return ""

    def working_files(self, directory: Path) -> list[Path]:
        """Files that served to make the container's own file and are not part of the result."""
        return []

    def complete(self, directory: Path, model_name: str, scheme: QuantizationScheme) -> None:
        """Gives the container's own file the name that it has in the directory of the model `model_name`."""
        return None

    def finish(self, model: FinishedModel) -> None:
        """Adds the files that are made from the finished checkpoint. Called when all but the manifest is there."""
        return None

    def faults(self, model: FinishedModel) -> list[str]:
        """Where the files that `finish` made contradict the checkpoint beside them; empty when they do not."""
        return []

    def method(self, config: Mapping[str, Any]) -> str:
        """The method that a `quantization_config` names; `quant_method` where it names none."""
        return self.quant_method

    def has_act_order(self, checkpoint: Checkpoint, module: str, scheme: LinearScheme) -> bool:
        """Whether the columns of a linear are grouped in another order than they lie in. qtk does not read such linears."""
        return False

    def stated_scheme(self, checkpoint: Checkpoint, modules: Mapping[str, tuple[int, int]]) -> QuantizationScheme:
        """What `read_scheme` reads. InputError too where the config's values are of other types than the container's."""
        try:
            return self.read_scheme(checkpoint, modules)
        except (LookupError, TypeError, ValueError, AttributeError, StopIteration, OverflowError) as error:
            raise InputError(
                f"{checkpoint.path / 'config.json'}: its quantization_config is not one of the {self.name} container "
                f"({type(error).__name__}: {error})."
            ) from None

    @abstractmethod
    def read_scheme(self, checkpoint: Checkpoint, modules: Mapping[str, tuple[int, int]]) -> QuantizationScheme:
        """The scheme of a checkpoint in this format; InputError for a variant that qtk does not read."""

    @abstractmethod
    def unpack(self, checkpoint: Checkpoint, module: str, scheme: LinearScheme) -> QuantizedLinear:
        """Reads one quantized linear back. InputError for act order, and for what else qtk does not read."""


def whole(value: Any) -> int:
    """A whole number of a config. TypeError for what can only be made one: 4.5, "4", true."""
    if type(value) is not int:
        raise TypeError(f"{value!r} is not a whole number")
    return value


def flag(value: Any) -> bool:
    """A yes or no of a config. TypeError for anything else, whose truth would be guessed."""
    if type(value) is not bool:
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def one_setting_refusals(name: str, scheme: QuantizationScheme) -> list[str]:
    """A sentence for each linear whose settings differ from the default, for containers that hold one setting and float."""
    default = scheme.default
    return [
        f"{module}: {other.bits} bits in groups of {other.group_size}; the {name} container holds one setting for all "
        f"linears (here {default.bits} bits in groups of {default.group_size}) or float"
        for module, other in scheme.overrides().items()
        if other.quantized and (other.bits, other.group_size) != (default.bits, default.group_size)
    ]


def float_modules(scheme: QuantizationScheme) -> list[str]:
    """Full names of the linears left in float. lm_head is among them also where it is tied, and so not a linear of its own."""
    names = [module for module, linear in scheme.modules.items() if not linear.quantized]
    return names if LM_HEAD_MODULE in scheme.modules else [*names, LM_HEAD_MODULE]
