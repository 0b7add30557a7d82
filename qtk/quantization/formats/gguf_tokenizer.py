"""A Hugging Face tokenizer as the metadata of a GGUF file: byte-level BPE whose way of splitting text llama.cpp knows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtk.bounded.files import read_bounded_text
from qtk.checkpoint.json_file import read_json
from qtk.errors import InputError
from qtk.models.tokenizer import TextTokenizer

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

# The eastern scripts that the tokenizers of DeepSeek-Coder keep together, written as they and llama.cpp write them.
_EASTERN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"

# How a tokenizer splits text before BPE, as `_signature` writes it -> what llama.cpp calls that.
_PRE_TOKENIZERS: dict[tuple[str, ...], str] = {
    ("bytes split",): "gpt-2",
    ("digits", "bytes split"): "smollm",
    (f"split {_LLAMA3}", "bytes"): "llama-bpe",
    (f"split {_QWEN2}", "bytes"): "qwen2",
    (
        "split [\r\n]",
        r"split \s?\p{L}+",
        r"split \s?\p{P}+",
        f"split {_EASTERN}",
        "digits",
        "bytes",
    ): "deepseek-coder",
}


@dataclass(frozen=True)
class GgufTokenizer:
    """What goes into tokenizer.ggml.*: `tokens` fill the vocabulary, padded with unused ones to the embedding's rows."""

    pre: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    special: dict[str, int]
    adds_bos: bool
    chat_template: str | None


def gguf_tokenizer(directory: Path, vocab_size: int) -> GgufTokenizer:
    """The tokenizer.json of a model directory for llama.cpp.

    InputError for a kind that qtk cannot express there: no byte-level BPE, a normalizer, or a split that llama.cpp has no
    name for. Guessing one would give a file that runs and tokenizes wrongly.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{directory} has no tokenizer.json, which a GGUF file must carry inside.")
    content = read_json(path)
    pre = _pre_tokenizer(path, content)
    model = content["model"]
    by_id = {number: text for text, number in model["vocab"].items()}
    added = {entry["id"]: entry for entry in content.get("added_tokens") or []}
    by_id |= {number: entry["content"] for number, entry in added.items()}
    if not model["merges"]:
        raise InputError(f"{path} has no merges, and llama.cpp loads no BPE tokenizer without any.")
    if too_high := [number for number in by_id if number >= vocab_size]:
        raise InputError(f"{path}: token {max(too_high)} lies beyond the {vocab_size} rows of the embedding.")
    text = TextTokenizer(directory)
    special = {}
    for name in ("bos", "eos", "unk", "pad"):
        token = text.special_token(f"{name}_token")
        number = next((n for n, t in by_id.items() if t == token), None) if token else None
        if number is not None:
            special[name] = number
    kinds = [_kind(number, by_id, added) for number in range(vocab_size)]
    return GgufTokenizer(
        pre=pre,
        tokens=[by_id.get(number, f"[PAD{number}]") for number in range(vocab_size)],
        kinds=kinds,
        merges=[m if isinstance(m, str) else " ".join(m) for m in model["merges"]],
        special=special,
        adds_bos=bool(text.bos_ids),
        chat_template=_chat_template(directory),
    )


def _kind(number: int, by_id: dict[int, str], added: dict[int, dict[str, Any]]) -> int:
    if number not in by_id:
        return _UNUSED
    if number in added:
        return _CONTROL if added[number].get("special") else _USER_DEFINED
    return _NORMAL


def _pre_tokenizer(path: Path, content: dict[str, Any]) -> str:
    model = content.get("model") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = f"{model.get('type')}{' with byte fallback' if model.get('byte_fallback') else ''}"
        raise InputError(f"{path}: a {kind} tokenizer; qtk writes byte-level BPE tokenizers into GGUF files only.")
    signature = _signature(content.get("pre_tokenizer"))
    normalizer = _normalizer(content.get("normalizer"))
    if normalizer not in (None, "NFC") or signature not in _PRE_TOKENIZERS:
        raise InputError(
            f"{path}: qtk does not know what llama.cpp calls a tokenizer that splits text by {list(signature)}"
            f"{f' after the normalizer {normalizer}' if normalizer else ''}; "
            f"it knows those of {', '.join(_PRE_TOKENIZERS.values())}. Choose another --container."
        )
    return _PRE_TOKENIZERS[signature]


def _normalizer(node: dict[str, Any] | None) -> str | None:
    """The kind of a normalizer; None for none, which some tokenizers write as an empty sequence."""
    kind = None if node is None else str(node.get("type"))
    return None if kind == "Sequence" and node is not None and not node.get("normalizers") else kind


def _signature(node: dict[str, Any] | None) -> tuple[str, ...]:
    """A pre-tokenizer as short words, one a step."""
    if node is None:
        return ()
    kind = node.get("type")
    if kind == "Sequence":
        return tuple(word for step in node.get("pretokenizers", []) for word in _signature(step))
    if kind == "ByteLevel" and not node.get("add_prefix_space"):
        return ("bytes split",) if node.get("use_regex", True) else ("bytes",)
    if kind == "Digits" and node.get("individual_digits"):
        return ("digits",)
    if kind == "Split" and node.get("behavior") == "Isolated" and not node.get("invert"):
        return (f"split {node['pattern'].get('Regex') or node['pattern'].get('String')}",)
    return (f"{kind} {json.dumps({k: v for k, v in node.items() if k != 'type'})}",)


def _chat_template(directory: Path) -> str | None:
    jinja = directory / "chat_template.jinja"
    if jinja.is_file():
        return read_bounded_text(jinja)
    config = directory / "tokenizer_config.json"
    template = read_json(config).get("chat_template")
    return template if isinstance(template, str) else None
