"""The same codes in another container: a quantized checkpoint written again, bit for bit, as another runtime wants it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qtk.errors import InputError, listing
from qtk.models.spec import LM_HEAD_MODULE
from qtk.quantization.checkpoint_writer import QuantizedCheckpointWriter
from qtk.quantization.formats.base import Format
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.quantized_linear import QuantizedLinear


def repack(
    weights: ModelWeights, container: Format, directory: Path, on_block: Callable[[int], None] = lambda layer: None
) -> None:
    """Writes `weights` in `container` into the existing, empty `directory`, one linear in memory at a time.

    InputError for a model that is not quantized, or with every reason why the container cannot hold it.
    """
    scheme, spec, checkpoint = weights.scheme, weights.spec, weights.checkpoint
    if not scheme.quantized:
        raise InputError(f"{checkpoint.path} is not quantized: `qtk quantize` writes the {container.name} container.")
    if reasons := repack_refusals(weights, container):
        raise InputError(f"{checkpoint.path} cannot be stored as {container.name}:\n{listing(reasons)}")
    with QuantizedCheckpointWriter(container, scheme, directory, source=weights, method=weights.method) as writer:
        for name in weights.kept_tensors():
            if not scheme.of(name.removesuffix(".weight")).quantized:
                writer.float(name, checkpoint.tensor(name))
        for layer in range(spec.num_layers):
            for member in spec.linears():
                _write_linear(weights, spec.block_prefix(layer) + member.name, writer)
            on_block(layer)
        _write_linear(weights, LM_HEAD_MODULE, writer)


def repack_refusals(weights: ModelWeights, container: Format) -> list[str]:
    """Why a quantized model cannot be stored in this container; empty when it can."""
    scheme, shapes = weights.scheme, weights.spec.module_shapes()
    reasons = [r for name, s in scheme.quantized_modules().items() for r in container.refusals(name, shapes[name], s)]
    return reasons + container.scheme_refusals(scheme) + container.checkpoint_refusals(weights.checkpoint)


def _write_linear(weights: ModelWeights, module: str, writer: QuantizedCheckpointWriter) -> None:
    """Writes a linear where it is quantized: what stays in float is written already."""
    if weights.scheme.of(module).quantized:
        linear = weights.linear(module)
        assert isinstance(linear, QuantizedLinear)
        writer.linear(module, linear)
