"""Writes a quantized checkpoint: the linears as their container lays them out, all other tensors as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from qtk.checkpoint.reader import Checkpoint, config_bytes
from qtk.checkpoint.writer import CheckpointWriter, TensorSpec, copy_companions
from qtk.errors import InputError
from qtk.models.rope import with_both_spellings
from qtk.models.spec import EMBEDDING
from qtk.quantization.formats.base import Format
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.scheme_model import QuantizationScheme


class QuantizedCheckpointWriter:
    """Writes the model `source`, stored as `scheme` says, into the existing `directory`.

    Tensors may come in any order; `close` adds config.json, the companion files and the container's own files. As a context
    manager it closes at the end, and after an exception leaves the files as they are.

    method: by which the linears were quantized, for config.json. resume: tensors that are there already keep their data.
    """

    def __init__(
        self,
        container: Format,
        scheme: QuantizationScheme,
        directory: Path,
        *,
        source: ModelWeights,
        method: str,
        resume: bool = False,
    ) -> None:
        self.container, self.scheme, self.directory = container, scheme, directory
        self.source, self.method = source.checkpoint, method
        self._writer = CheckpointWriter(directory, _layout(container, scheme, source), resume=resume)

    @property
    def tensor_names(self) -> list[str]:
        """The tensors of the checkpoint, in the order of its files."""
        return list(self._writer.specs)

    @property
    def descriptors(self) -> list[int]:
        """The open files, for whoever keeps a resumable state and decides when to flush."""
        return self._writer.descriptors

    def mark_written(self, *names: str) -> None:
        """Says that these tensors were written before a resume."""
        self._writer.mark_written(*names)

    def linear(self, module: str, linear: QuantizedLinear) -> None:
        """Writes a quantized linear. InputError for scales that float16 cannot hold."""
        if not bool(torch.isfinite(linear.scales).all()):
            raise InputError(
                f"{module}: its weights are too large for scales in float16, which end at 65504. Leave it in float "
                f'(--override "{module}=bits:16"), or check the merge or training that produced such large weights.'
            )
        for name, tensor in self.container.pack(module, _on_cpu(linear)).items():
            self._writer.write(name, tensor.to(self._writer.specs[name].dtype))

    def float(self, name: str, tensor: torch.Tensor) -> None:
        """Writes a tensor that stays in float, by its full name."""
        self._writer.write(name, tensor.cpu())

    def close(self) -> None:
        """Completes the checkpoint. A tensor that was never written is a bug (ValueError)."""
        self._writer.close()
        quantization = self.container.quantization_config(self.scheme, self.method)
        config = {**with_both_spellings(self.source.config), "quantization_config": quantization}
        copy_companions(self.source, self.directory, config=config_bytes(config))
        for name, content in self.container.extra_files(self.scheme).items():
            (self.directory / name).write_bytes(content)
        self.container.finish(ModelWeights.open(self.directory))

    def __enter__(self) -> QuantizedCheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._writer.abandon()


def written_bytes(container: Format, scheme: QuantizationScheme, source: ModelWeights) -> int:
    """Bytes of the tensors that a checkpoint of this scheme holds."""
    return sum(spec.nbytes for spec in _layout(container, scheme, source).values())


def _layout(container: Format, scheme: QuantizationScheme, source: ModelWeights) -> dict[str, TensorSpec]:
    """Every tensor that will be written, in the order of the source's files."""
    specs: dict[str, TensorSpec] = {}
    shapes, model_dtype = source.spec.module_shapes(), source.checkpoint.info(EMBEDDING).dtype
    for name in source.kept_tensors():
        module = name.removesuffix(".weight")
        linear = scheme.of(module)
        if linear.quantized:
            stored = container.specs(module, shapes[module], linear)
            for tensor in container.in_model_dtype:
                if (own := f"{module}.{tensor}") in stored:
                    stored[own] = replace(stored[own], dtype=model_dtype)
            specs |= stored
        else:
            specs[name] = _as_it_is(source.checkpoint, name)
    return specs


def _as_it_is(checkpoint: Checkpoint, name: str) -> TensorSpec:
    return TensorSpec(checkpoint.info(name).dtype, checkpoint.info(name).shape)


def _on_cpu(linear: QuantizedLinear) -> QuantizedLinear:
    zeros = None if linear.zeros is None else linear.zeros.cpu()
    return replace(linear, codes=linear.codes.cpu(), scales=linear.scales.cpu(), zeros=zeros)
