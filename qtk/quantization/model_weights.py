"""Reads a model's weights, quantized or float, block by block, in canonical form: what engines and scoring start from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from qtk.checkpoint.reader import Checkpoint, require_finite
from qtk.errors import InputError, listing
from qtk.models.registry import model_spec
from qtk.models.spec import EMBEDDING, FINAL_NORM, LM_HEAD, LM_HEAD_MODULE, ModelSpec
from qtk.quantization.formats.base import Format
from qtk.quantization.formats.gguf import GgufFileFormat
from qtk.quantization.formats.gguf_checkpoint import GgufCheckpoint, is_gguf_directory
from qtk.quantization.formats.registry import FORMATS, format_of
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.scheme_model import QuantizationScheme, float_scheme


@dataclass(frozen=True)
class TokenEmbeddings:
    """Some rows of an embedding. ids: [n] int64, rising; rows: [n, hidden] as stored."""

    ids: torch.Tensor
    rows: torch.Tensor

    def of(self, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """[batch, tokens] of these ids -> [batch, tokens, hidden]."""
        return torch.nn.functional.embedding(torch.searchsorted(self.ids, tokens.contiguous()), self.rows).to(dtype)


@dataclass
class ModelWeights:
    """A checkpoint with its spec and its scheme, which leaves every linear in float where the model is not quantized.

    `format` is the container of the quantized linears, None for a float model. `linear(module)` gives a QuantizedLinear or
    a float tensor [out, in]; `bias(module)` the bias or None.
    """

    checkpoint: Checkpoint
    spec: ModelSpec
    scheme: QuantizationScheme
    format: Format | None = field(default=None, repr=False)

    @staticmethod
    def open(directory: Path | str) -> ModelWeights:
        """Opens a model directory. InputError for an unknown architecture or container, or tensors of other shapes."""
        checkpoint = open_checkpoint(directory)
        spec = model_spec(checkpoint)
        if not checkpoint.config.get("quantization_config"):
            checkpoint.require_tensors(spec.all_tensors())
            return ModelWeights.of_floats(checkpoint, spec)
        container = _container(checkpoint)
        scheme = _read_scheme(container, checkpoint, spec.module_shapes())
        shapes, integers = _stored_shapes(container, checkpoint, spec, scheme)
        checkpoint.require_tensors(shapes, integers)
        return _with_a_norm(ModelWeights(checkpoint, spec, scheme, container))

    @staticmethod
    def of_floats(checkpoint: Checkpoint, spec: ModelSpec) -> ModelWeights:
        """A float checkpoint whose spec is known already."""
        return _with_a_norm(ModelWeights(checkpoint, spec, float_scheme(spec)))

    @property
    def quantized(self) -> bool:
        """Whether any linear is quantized."""
        return self.scheme.quantized

    @property
    def method(self) -> str:
        """The method by which the linears were quantized, as far as the container says; "none" for a float model."""
        return "none" if self.format is None else self.format.method(_config(self.checkpoint))

    def has_act_order(self, module: str) -> bool:
        """Whether a quantized linear's columns are grouped in another order than they lie in."""
        return self.format is not None and self.format.has_act_order(self.checkpoint, module, self.scheme.of(module))

    def kept_tensors(self) -> list[str]:
        """The tensors that belong to the model, by the names that a float checkpoint has for them.

        Of a float checkpoint, in the order of its files: a tied lm_head that was saved too, rope buffers and biases of zeros that
        the architecture does not know do not belong to the model.
        """
        wanted = self.spec.all_tensors()
        return list(wanted) if self.quantized else [name for name in self.checkpoint.names if name in wanted]

    def linear(self, module: str) -> QuantizedLinear | torch.Tensor:
        """The weight of a module by full name ("model.layers.0.mlp.up_proj", "lm_head")."""
        if module == LM_HEAD_MODULE and self.spec.tie_word_embeddings:
            return self.checkpoint.tensor(EMBEDDING, finite=True)
        scheme = self.scheme.of(module)
        if self.format is not None and scheme.quantized:
            linear = self.format.unpack(self.checkpoint, module, scheme)
            if not bool(linear.scales.any()):
                raise InputError(f"{self.checkpoint.path}: every scale of {module} is zero. The file is damaged.")
            return linear
        return self.checkpoint.tensor(f"{module}.weight", finite=True)

    def float_linear(self, module: str, dtype: torch.dtype) -> torch.Tensor:
        """The weight [out, in] as floats, dequantized where it is quantized."""
        weight = self.linear(module)
        return weight.dequantize(dtype) if isinstance(weight, QuantizedLinear) else weight.to(dtype)

    def bias(self, module: str) -> torch.Tensor | None:
        name = f"{module}.bias"
        return self.checkpoint.tensor(name, finite=True) if name in self.checkpoint else None

    def float_block(self, layer: int) -> dict[str, torch.Tensor]:
        """Block `layer` of a float checkpoint as stored, by name below its prefix."""
        prefix = self.spec.block_prefix(layer)
        names = [n for n in self.checkpoint.names if n.startswith(prefix) and n in self.spec.block_tensors(layer)]
        tensors = {n.removeprefix(prefix): self.checkpoint.tensor(n, finite=True) for n in names}
        self._require_some(layer, (tensors[f"{linear.name}.weight"] for linear in self.spec.linears()))
        return tensors

    def block(self, layer: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Block `layer` as float tensors by name below its prefix, dequantized: what `block_forward` takes."""
        prefix = self.spec.block_prefix(layer)
        weights = {
            f"{n}.weight": self.checkpoint.tensor(f"{prefix}{n}.weight", finite=True).to(dtype)
            for n in self.spec.norms()
        }
        for linear in self.spec.linears():
            weights[f"{linear.name}.weight"] = self.float_linear(prefix + linear.name, dtype)
            bias = self.bias(prefix + linear.name) if linear.bias else None
            if bias is not None:
                weights[f"{linear.name}.bias"] = bias.to(dtype)
        self._require_some(layer, (weights[f"{linear.name}.weight"] for linear in self.spec.linears()))
        return weights

    def require_values(self) -> None:
        """InputError for a float checkpoint with a block whose weights are all zeros. Reads a row of each block where all is well."""
        for layer in range(0 if self.quantized else self.spec.num_layers):
            prefix = self.spec.block_prefix(layer)
            names = [f"{prefix}{linear.name}.weight" for linear in self.spec.linears()]
            if not any(bool(self.checkpoint.rows(name, 0, 1).any()) for name in names):
                self._require_some(layer, (self.checkpoint.tensor(name) for name in names))

    def _require_some(self, layer: int, weights: Iterable[torch.Tensor]) -> None:
        if not any(bool(weight.any()) for weight in weights):
            raise InputError(f"{self.checkpoint.path}: every weight of block {layer} is zero. The file is damaged.")

    def embed(self, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Embeddings of token ids [batch, tokens] int64 -> [batch, tokens, hidden]; raises as `embedding_rows`."""
        return self.embedding_rows(tokens).of(tokens, dtype)

    def embedding_rows(self, tokens: torch.Tensor) -> TokenEmbeddings:
        """The embeddings of these tokens only, each read once: the whole table may be larger than a block. InputError for an id
        beyond the vocabulary, and for NaN or Inf."""
        ids = tokens.unique()
        size = self.checkpoint.info(EMBEDDING).shape[0]
        if int(ids[-1]) >= size:
            raise InputError(f"{self.checkpoint.path}: token id {int(ids[-1])}, and the vocabulary ends at {size - 1}.")
        rows = torch.cat([self.checkpoint.rows(EMBEDDING, i, i + 1) for i in ids.tolist()])
        require_finite(rows, f"{self.checkpoint.path}: tensor {EMBEDDING}")
        return TokenEmbeddings(ids, rows)

    def final_norm(self) -> torch.Tensor:
        return self.checkpoint.tensor(FINAL_NORM, finite=True)

    def lm_head(self, dtype: torch.dtype) -> torch.Tensor:
        """The output head [vocab, hidden] as floats."""
        if self.spec.tie_word_embeddings or f"{LM_HEAD_MODULE}.weight" in self.checkpoint:
            name = EMBEDDING if self.spec.tie_word_embeddings else LM_HEAD
            return self.checkpoint.tensor(name, finite=True).to(dtype)
        return self.float_linear(LM_HEAD_MODULE, dtype)


def open_checkpoint(directory: Path | str) -> Checkpoint:
    """The checkpoint of a model directory, whether its weights are safetensors or one GGUF file."""
    return GgufCheckpoint(directory) if is_gguf_directory(Path(directory)) else Checkpoint(directory)


def _config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The `quantization_config` of a quantized checkpoint; empty where it is not an object."""
    config = checkpoint.config["quantization_config"]
    return config if isinstance(config, dict) else {}


def _container(checkpoint: Checkpoint) -> Format:
    """The container that config.json names. InputError for one that qtk does not read."""
    config = checkpoint.config["quantization_config"]
    quant_method = str(config.get("quant_method")) if isinstance(config, dict) else str(config)
    container = GgufFileFormat() if isinstance(checkpoint, GgufCheckpoint) else format_of(quant_method)
    if container is None:
        known = ", ".join(dict.fromkeys(f.quant_method for f in FORMATS.values()))
        raise InputError(f"{checkpoint.path}: quantized in container {quant_method!r}; qtk reads {known}.")
    return container


def _read_scheme(container: Format, checkpoint: Checkpoint, shapes: dict[str, tuple[int, int]]) -> QuantizationScheme:
    """The scheme, with a group size of -1 (whole rows) written out. InputError where the config makes no sense."""
    scheme = container.stated_scheme(checkpoint, shapes)
    whole = {
        name: replace(linear, group_size=shapes[name][1])
        for name, linear in scheme.modules.items()
        if linear.group_size <= 0
    }
    uneven = [
        f"{name}: {shapes[name][1]} inputs in groups of {linear.group_size}"
        for name, linear in scheme.modules.items()
        if linear.quantized and linear.group_size > 0 and shapes[name][1] % linear.group_size
    ]
    if uneven:
        raise InputError(f"{checkpoint.path}: groups that do not divide their linears:\n{listing(uneven)}")
    return replace(scheme, modules={**scheme.modules, **whole})


def _stored_shapes(
    container: Format, checkpoint: Checkpoint, spec: ModelSpec, scheme: QuantizationScheme
) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """(name -> shape of the tensors that a checkpoint of this scheme must have, name -> bytes of a number for those that hold whole
    numbers); what a container may lack is left out where it does."""
    shapes: dict[str, tuple[int, ...]] = {}
    integers: dict[str, int] = {}
    for name, shape in spec.all_tensors().items():
        module = name.removesuffix(".weight")
        linear = scheme.of(module)
        if not linear.quantized:
            shapes[name] = shape
            continue
        for stored, tensor in container.specs(module, (shape[0], shape[1]), linear).items():
            if stored in checkpoint or stored.rpartition(".")[2] not in container.may_lack:
                shapes[stored] = tensor.shape
                if not tensor.dtype.is_floating_point:
                    # Tools write the shape in other widths than ours; packed weights mean something in one width only.
                    integers[stored] = 0 if tensor.dtype is torch.int64 else tensor.dtype.itemsize
    return shapes, integers


def _with_a_norm(weights: ModelWeights) -> ModelWeights:
    """The weights. InputError where the last norm is zeros, which makes every logit zero: such a file was never filled."""
    if not bool(weights.final_norm().any()):
        raise InputError(f"{weights.checkpoint.path}: {FINAL_NORM} is all zeros. The file is damaged.")
    return weights
