"""GGUF, the single file that llama.cpp runs: symmetric codes carried over bit for bit.

A Q4_0 block is 32 weights: a float16 scale d (which may be negative) and 32 nibbles q, w = (q - 8) * d, byte j holding
weight j in its low and weight j + 16 in its high nibble. That is our symmetric weight itself at a group size of 32; larger
groups repeat their scale. Q8_0 is the same with int8 codes. So what GPTQ found survives, where llama.cpp's own tool
would round again. Source: ggml's block_q4_0 and block_q8_0 and llama.cpp's tensor names and metadata keys (MIT).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qtk.checkpoint.reader import INDEX_NAME, Checkpoint
from qtk.checkpoint.writer import TensorSpec
from qtk.errors import InputError, listing
from qtk.install_hints import missing_package
from qtk.models.registry import model_spec
from qtk.models.spec import EMBEDDING, FINAL_NORM, LM_HEAD, LM_HEAD_MODULE, ModelSpec
from qtk.quantization.formats.base import FinishedModel
from qtk.quantization.formats.gguf_checkpoint import BLOCKS
from qtk.quantization.formats.gguf_file import read_gguf
from qtk.quantization.formats.gguf_names import ARCHITECTURES, NAMES
from qtk.quantization.formats.gptq import GptqFormat, overridden
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.scheme_model import FLOAT_BITS, LinearScheme, QuantizationScheme

if TYPE_CHECKING:
    import torch

    from qtk.quantization.formats.gguf_tokenizer import GgufTokenizer

_FILE = "model.gguf"  # until the directory is complete and has its name
_BLOCK = 32
_BLOCK_BYTES = {"Q4_0": 18, "Q8_0": 34}
Kind = Literal["F32", "F16", "Q4_0", "Q8_0"]
_KIND_OF_BITS: dict[int, Kind] = {4: "Q4_0", 8: "Q8_0", FLOAT_BITS: "F16"}


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the file: its shape as in torch, its GGUF type, how to make its bytes when its turn comes, and the
    floats that these stand for."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    data: Callable[[], torch.Tensor]
    meant: Callable[[], torch.Tensor]


class GgufFormat(GptqFormat):
    """One GGUF file, which llama.cpp runs and qtk reads.

    While a model is quantized its linears lie in a gptq checkpoint, block by block; the file is made from that and compared
    with it, and `complete` leaves the file alone.
    """

    name = "gguf"
    quant_method = "gguf"

    def refusals(self, module: str, shape: tuple[int, int], scheme: LinearScheme) -> list[str]:
        return super().refusals(module, shape, scheme) + gguf_refusals(module, shape, scheme)

    def checkpoint_refusals(self, checkpoint: Checkpoint) -> list[str]:
        from qtk.quantization.formats.gguf_tokenizer import gguf_tokenizer

        if importlib.util.find_spec("gguf") is None:
            raise missing_package("Writing GGUF", "gguf", "gguf")
        spec = model_spec(checkpoint)
        if spec.architecture not in ARCHITECTURES:
            return [f"{spec.architecture} has no GGUF writer; qtk has one for {', '.join(ARCHITECTURES)}"]
        reasons = []
        try:
            gguf_tokenizer(checkpoint.path, spec.vocab_size)
        except InputError as error:
            reasons.append(str(error))
        for name in (EMBEDDING, LM_HEAD):
            try:
                if name in checkpoint:
                    _half(checkpoint.tensor(name), name)
            except InputError as error:
                reasons.append(str(error))
        return reasons

    def quantization_config(self, scheme: QuantizationScheme, method: str) -> dict[str, Any]:
        return {**super().quantization_config(scheme, method), "quant_method": self.quant_method}

    def file_name(self, model_name: str, scheme: QuantizationScheme) -> str:
        return f"{model_name}-{_KIND_OF_BITS[scheme.default.bits]}.gguf"

    def finish(self, model: FinishedModel) -> None:
        write_gguf(model, model.checkpoint.path / _FILE)

    def working_files(self, directory: Path) -> list[Path]:
        return [*directory.glob("*.safetensors"), *directory.glob(INDEX_NAME)]

    def complete(self, directory: Path, model_name: str, scheme: QuantizationScheme) -> None:
        if (directory / _FILE).exists():  # a run that was stopped here has renamed it already
            (directory / _FILE).rename(directory / self.file_name(model_name, scheme))

    def faults(self, model: FinishedModel) -> list[str]:
        return gguf_faults(model, model.checkpoint.path / _FILE)


class GgufFileFormat(GgufFormat):
    """The container as it is read when the file is alone (`GgufCheckpoint`)."""

    def specs(self, module: str, shape: tuple[int, int], scheme: LinearScheme) -> dict[str, TensorSpec]:
        import torch

        width = shape[1] // _BLOCK * _BLOCK_BYTES[_KIND_OF_BITS[scheme.bits]]
        return {f"{module}.{BLOCKS}": TensorSpec(torch.uint8, (shape[0], width))}

    def read_scheme(self, checkpoint: Checkpoint, modules: Mapping[str, tuple[int, int]]) -> QuantizationScheme:
        config = checkpoint.config["quantization_config"]
        default = LinearScheme(int(config["bits"]), int(config["group_size"]), True)
        schemes = {}
        for module in modules:
            scheme = overridden(module, default, config.get("dynamic") or {})
            schemes[module] = scheme if f"{module}.{BLOCKS}" in checkpoint else replace(scheme, bits=FLOAT_BITS)
        return QuantizationScheme(default, schemes)

    def has_act_order(self, checkpoint: Checkpoint, module: str, scheme: LinearScheme) -> bool:
        return False

    def unpack(self, checkpoint: Checkpoint, module: str, scheme: LinearScheme) -> QuantizedLinear:
        return unpack_blocks(checkpoint.tensor(f"{module}.{BLOCKS}"), scheme)


def unpack_blocks(rows: torch.Tensor, scheme: LinearScheme) -> QuantizedLinear:
    """Q4_0 or Q8_0 rows, uint8 [out, bytes], as the symmetric weight that they were packed from: the inverse of `pack_q4_0`
    and `pack_q8_0`."""
    import torch

    blocks = rows.view(rows.shape[0], -1, _BLOCK_BYTES[_KIND_OF_BITS[scheme.bits]])
    scales = blocks[:, :, :2].contiguous().view(torch.float16).squeeze(2)[:, :: scheme.group_size // _BLOCK]
    payload = blocks[:, :, 2:]
    if scheme.bits == 4:
        codes = torch.cat((payload & 15, payload >> 4), dim=2)
    else:
        codes = payload.contiguous() ^ 128  # from two's complement to codes around 128
    return QuantizedLinear(codes.reshape(rows.shape[0], -1), scales.contiguous(), None, scheme.bits, scheme.group_size)


def gguf_refusals(module: str, shape: tuple[int, int], scheme: LinearScheme) -> list[str]:
    """Why this linear ([out, in]) cannot go into a GGUF file; empty when it can."""
    reasons = []
    if not scheme.symmetric:
        reasons.append(f"{module}: asymmetric; Q4_0 and Q8_0 have no zero points")
    if scheme.group_size % _BLOCK or shape[1] % _BLOCK:
        reasons.append(
            f"{module}: {shape[1]} inputs in groups of {scheme.group_size}; GGUF blocks are {_BLOCK}, so both must be "
            f"multiples of it"
        )
    return reasons


def write_gguf(weights: FinishedModel, path: Path) -> None:
    """Writes a checkpoint, quantized or float, as one GGUF file, tensor by tensor; what is float is stored in float16.

    Raises InputError for what GGUF cannot hold (every linear named) and for tokenizers that llama.cpp has no name for,
    MachineError where the gguf package is missing.
    """

    import torch

    from qtk.quantization.formats.gguf_tokenizer import gguf_tokenizer

    try:
        import gguf
    except ImportError:
        raise missing_package("Writing GGUF", "gguf", "gguf") from None
    _require_fit(weights)
    tokenizer = gguf_tokenizer(weights.checkpoint.path, weights.spec.vocab_size)
    name, interleaved = ARCHITECTURES[weights.spec.architecture]
    tensors = list(_tensors(weights, interleaved))
    writer = gguf.GGUFWriter(path, name)
    _write_metadata(writer, gguf, weights, tokenizer)
    for tensor in tensors:
        rows, width = _stored_shape(tensor)
        stored = torch.empty((*rows, width), dtype=_stored_dtype(tensor.kind), device="meta")
        raw_type = gguf.GGMLQuantizationType[tensor.kind]
        numpy_type = torch.empty(0, dtype=stored.dtype).numpy().dtype
        writer.add_tensor_info(tensor.name, tuple(stored.shape), numpy_type, stored.nbytes, raw_type)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(tensor.data().contiguous().numpy())
    finally:
        writer.close()


def gguf_faults(weights: FinishedModel, path: Path) -> list[str]:
    """Reads a GGUF file by the gguf package and compares it with the checkpoint that it was made from: tensors that are
    missing or too many, of another type or shape, or that mean other weights. Empty when none is."""

    import gguf
    import torch

    try:
        written = {tensor.name: tensor for tensor in read_gguf(path).tensors}
    except InputError as error:
        return [str(error)]
    _, interleaved = ARCHITECTURES[weights.spec.architecture]
    expected = {tensor.name: tensor for tensor in _tensors(weights, interleaved)}
    faults = [f"{path.name}: {name} is missing" for name in sorted(expected.keys() - written.keys())]
    faults += [f"{path.name}: {name} should not be there" for name in sorted(written.keys() - expected.keys())]
    for name in sorted(expected.keys() & written.keys()):
        tensor, stored = expected[name], written[name]
        if stored.tensor_type.name != tensor.kind:
            faults.append(f"{path.name}: {name} is {stored.tensor_type.name}, not {tensor.kind}")
            continue
        meant = torch.from_numpy(gguf.quants.dequantize(stored.data, stored.tensor_type).copy())
        if not torch.equal(meant.view(-1), tensor.meant().float().reshape(-1)):
            faults.append(f"{path.name}: {name} holds other weights than the checkpoint")
    return faults


def pack_q4_0(linear: QuantizedLinear) -> torch.Tensor:
    """A symmetric 4-bit weight [out, in] as Q4_0 rows: uint8 [out, in / 32 * 18]."""
    codes = linear.codes.view(linear.codes.shape[0], -1, 2, _BLOCK // 2)
    return _blocks(linear, codes[:, :, 0] | (codes[:, :, 1] << 4))


def pack_q8_0(linear: QuantizedLinear) -> torch.Tensor:
    """A symmetric 8-bit weight [out, in] as Q8_0 rows: uint8 [out, in / 32 * 34]."""

    import torch

    return _blocks(linear, linear.signed_codes().view(torch.uint8).view(linear.codes.shape[0], -1, _BLOCK))


def _blocks(linear: QuantizedLinear, payload: torch.Tensor) -> torch.Tensor:
    """Scale and payload [out, blocks, bytes] of each block side by side, a group's scale repeated for its blocks."""

    import torch

    scales = linear.scales.to(torch.float16).repeat_interleave(linear.group_size // _BLOCK, dim=1).contiguous()
    scales_bytes = scales.view(torch.uint8).view(*payload.shape[:2], 2)
    return torch.cat((scales_bytes, payload), dim=2).reshape(payload.shape[0], -1)


def interleave_rows(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q or k (first dimension) from the halves convention of rotary pairs (i, i + d/2) to neighbours (2i, 2i + 1)."""
    half = weight.shape[0] // heads // 2
    return weight.view(heads, 2, half, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _tensors(weights: FinishedModel, interleaved: bool) -> Iterator[_Tensor]:
    import torch

    spec = weights.spec
    yield _table(weights, "token_embd.weight", EMBEDDING)
    if spec.rope.kind == "llama3":
        plain = 1.0 / spec.rope.theta ** (torch.arange(0, spec.head_dim, 2).float() / spec.head_dim)
        factors = plain / spec.rope.inverse_frequencies(spec.head_dim)
        yield _Tensor("rope_freqs.weight", tuple(factors.shape), "F32", lambda: factors, lambda: factors)
    for layer in range(spec.num_layers):
        yield from _block_tensors(weights, layer, interleaved)
    yield _vector(weights, "output_norm.weight", FINAL_NORM)
    if not spec.tie_word_embeddings:
        if LM_HEAD in weights.checkpoint:
            yield _table(weights, "output.weight", LM_HEAD)
        else:
            yield _linear(weights, "output.weight", LM_HEAD_MODULE, (spec.vocab_size, spec.hidden_size), None)


def _block_tensors(weights: FinishedModel, layer: int, interleaved: bool) -> Iterator[_Tensor]:
    spec, prefix = weights.spec, weights.spec.block_prefix(layer)
    for norm in spec.norms():
        yield _vector(weights, f"blk.{layer}.{NAMES[norm]}.weight", f"{prefix}{norm}.weight")
    heads_of = {"self_attn.q_proj": spec.num_heads, "self_attn.k_proj": spec.num_kv_heads}
    for linear in spec.linears():
        heads = heads_of.get(linear.name) if interleaved else None
        name, module = f"blk.{layer}.{NAMES[linear.name]}", prefix + linear.name
        yield _linear(weights, f"{name}.weight", module, (linear.out_features, linear.in_features), heads)
        if linear.bias:
            yield _vector(weights, f"{name}.bias", f"{module}.bias", heads)


def _vector(weights: FinishedModel, name: str, source: str, heads: int | None = None) -> _Tensor:
    def data() -> torch.Tensor:
        vector = weights.checkpoint.tensor(source, finite=True).float()
        return interleave_rows(vector, heads) if heads else vector

    return _Tensor(name, weights.checkpoint.info(source).shape, "F32", data, data)


def _table(weights: FinishedModel, name: str, source: str) -> _Tensor:
    def data() -> torch.Tensor:
        return _half(weights.checkpoint.tensor(source, finite=True), source)

    return _Tensor(name, weights.checkpoint.info(source).shape, "F16", data, data)


def _linear(weights: FinishedModel, name: str, module: str, shape: tuple[int, int], heads: int | None) -> _Tensor:
    import torch

    kind: Kind = _KIND_OF_BITS[weights.scheme.of(module).bits]

    def data() -> torch.Tensor:
        weight = weights.linear(module)
        if isinstance(weight, QuantizedLinear):
            rows = pack_q4_0(weight) if weight.bits == 4 else pack_q8_0(weight)
        else:
            rows = _half(weight, module)
        return interleave_rows(rows, heads) if heads else rows

    def meant() -> torch.Tensor:
        weight = weights.linear(module)
        floats = weight.dequantize() if isinstance(weight, QuantizedLinear) else weight.to(torch.float16).float()
        return interleave_rows(floats, heads) if heads else floats

    return _Tensor(name, shape, kind, data, meant)


def _half(tensor: torch.Tensor, name: str) -> torch.Tensor:
    import torch

    half = tensor.to(torch.float16)
    if not torch.isfinite(half).all():
        raise InputError(f"{name} has values beyond float16's 65504, which a GGUF file of this kind cannot hold.")
    return half


def _stored_shape(tensor: _Tensor) -> tuple[tuple[int, ...], int]:
    width = tensor.shape[-1]
    if tensor.kind in _BLOCK_BYTES:
        width = width // _BLOCK * _BLOCK_BYTES[tensor.kind]
    return tensor.shape[:-1], width


def _stored_dtype(kind: Kind) -> torch.dtype:
    import torch

    return {"F32": torch.float32, "F16": torch.float16}.get(kind, torch.uint8)


def _require_fit(weights: FinishedModel) -> None:
    spec, reasons = weights.spec, []
    if spec.architecture not in ARCHITECTURES:
        raise InputError(f"{spec.architecture} has no GGUF writer; qtk has one for {', '.join(ARCHITECTURES)}.")
    shapes = spec.module_shapes()
    for module, scheme in weights.scheme.quantized_modules().items():
        reasons += gguf_refusals(module, shapes[module], scheme)
    if reasons:
        raise InputError(f"{weights.checkpoint.path} cannot become a GGUF file:\n{listing(reasons)}")


def _model_name(directory: Path) -> str:
    """The name of the finished directory, of which `directory` may be the unfinished one or a method's part of it."""
    place = directory.parent if directory.parent.suffix == ".partial" else directory
    return place.name.removesuffix(".partial")


def _write_metadata(writer: Any, gguf: Any, weights: FinishedModel, tokenizer: GgufTokenizer) -> None:
    spec: ModelSpec = weights.spec
    writer.add_type("model")
    writer.add_name(_model_name(weights.checkpoint.path))
    # llama.cpp's llama graph has no sliding window: within one window the two are the same, so that is the context.
    windows = [window for window in spec.windows if window is not None]
    writer.add_context_length(min([spec.max_positions, *windows]))
    writer.add_embedding_length(spec.hidden_size)
    writer.add_block_count(spec.num_layers)
    writer.add_feed_forward_length(spec.intermediate_size)
    writer.add_head_count(spec.num_heads)
    writer.add_head_count_kv(spec.num_kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_rope_dimension_count(spec.head_dim)
    writer.add_layer_norm_rms_eps(spec.rms_norm_eps)
    writer.add_rope_freq_base(spec.rope.theta)
    if spec.rope.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(spec.rope.factor)
    writer.add_vocab_size(spec.vocab_size)
    kinds = {4: gguf.LlamaFileType.MOSTLY_Q4_0, 8: gguf.LlamaFileType.MOSTLY_Q8_0}
    writer.add_file_type(kinds.get(weights.scheme.default.bits, gguf.LlamaFileType.MOSTLY_F16))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.kinds)
    writer.add_token_merges(tokenizer.merges)
    for name, number in tokenizer.special.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(tokenizer.adds_bos)
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
