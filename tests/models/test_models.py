"""Our block forward against transformers, for every architecture: float32, padded and not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_models import TINY, VARIANTS

from qtk.calibration.options import CalibrationOptions
from qtk.checkpoint.writer import copy_companions
from qtk.errors import InputError
from qtk.models.forward import KeyValues, apply_weight, attention_mask, block_forward, rms_norm
from qtk.models.registry import ARCHITECTURES, spec_from_config
from qtk.models.rope import RopeSettings, with_both_spellings
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.options import QuantizeOptions
from qtk.quantization.quantize import quantize_model


def our_logits(weights: ModelWeights, tokens: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
    spec = weights.spec
    hidden = weights.embed(tokens, torch.float32)
    cos, sin = spec.rope.tables(spec.head_dim, tokens.shape[1])
    for layer in range(spec.num_layers):
        mask = attention_mask(tokens.shape[1], keep, spec.windows[layer])
        hidden = block_forward(spec, weights.block(layer, torch.float32), hidden, cos, sin, mask=mask)
    return rms_norm(hidden, weights.final_norm(), spec.rms_norm_eps) @ weights.lm_head(torch.float32).T


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(tiny, variant: str) -> None:
    from transformers import AutoModelForCausalLM

    weights = ModelWeights.open(tiny(variant))
    tokens = torch.randint(0, 320, (2, 90), generator=torch.Generator().manual_seed(1))
    model = AutoModelForCausalLM.from_pretrained(tiny(variant), dtype=torch.float32)
    with torch.no_grad():
        expected = model(tokens).logits
        keep = torch.ones_like(tokens, dtype=torch.bool)
        keep[1, 50:] = False
        ours, padded = our_logits(weights, tokens), our_logits(weights, tokens, keep)
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=2e-4)
    # Right padding changes nothing before it.
    torch.testing.assert_close(padded[1, :50], expected[1, :50], atol=2e-4, rtol=2e-4)


MIXED = {"use_sliding_window": True, "sliding_window": 16}


def same_as_transformers(directory: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokens = torch.randint(0, 320, (2, 90), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)(tokens).logits
        torch.testing.assert_close(our_logits(ModelWeights.open(directory), tokens), expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(
    "mixed",
    [
        {"max_window_layers": 1},
        {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        {"max_window_layers": 0},
    ],
)
def test_windows_on_some_layers_equal_transformers(tmp_path, mixed: dict, make_tiny) -> None:
    directory = make_tiny(tmp_path / "model", "qwen2", **MIXED, **mixed)
    assert 16 in ModelWeights.open(directory).spec.windows
    same_as_transformers(directory)


def config_with(family: str, **changes: object) -> dict[str, object]:
    return {**TINY, "architectures": [f"{family}ForCausalLM"], **changes}


@pytest.mark.parametrize(
    ("family", "changes", "left_out"),
    [
        ("Mistral", {}, "sliding_window"),
        ("Mistral", {"num_attention_heads": 8}, "num_key_value_heads"),
        ("Mistral", {"layer_types": ["full_attention"] * 3}, ""),  # which Mistral does not look at
        ("Qwen2", {**MIXED, "num_hidden_layers": 30}, "max_window_layers"),
        ("Qwen3", {**MIXED, "num_hidden_layers": 30}, "max_window_layers"),
        ("Qwen2", {"use_sliding_window": True, "max_window_layers": 2}, "sliding_window"),
        ("Qwen2", {"num_attention_heads": 32}, "num_key_value_heads"),
        ("Qwen3", {}, "max_position_embeddings"),
    ],
)
def test_what_a_config_leaves_out_is_what_transformers_takes(family: str, changes: dict, left_out: str) -> None:
    import transformers

    config = config_with(family, **changes)
    config.pop(left_out, None)
    theirs = getattr(transformers, f"{family}Config")(**config)
    spec = spec_from_config(config, "config.json")
    if family == "Mistral":
        windows = [theirs.sliding_window] * theirs.num_hidden_layers
    else:
        windows = [theirs.sliding_window if kind == "sliding_attention" else None for kind in theirs.layer_types]
    assert list(spec.windows) == windows
    assert (spec.num_kv_heads, spec.max_positions) == (theirs.num_key_value_heads, theirs.max_position_embeddings)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_key_value_heads": "2"}, "num_key_value_heads is '2'"),
        ({"rope_theta": "x"}, "rope_theta is 'x'"),
        ({"rope_scaling": {"type": "linear"}}, "'linear' needs factor"),
        ({"rope_scaling": {"type": "linear", "factor": None}}, "'linear' needs factor"),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, "factor is '4'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "kind of layer"),
        ({"rope_scaling": [1]}, "must be an object"),
        ({"max_position_embeddings": [512]}, "max_position_embeddings"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"head_dim": 0}, "head_dim is 0"),
        ({"architectures": [["LlamaForCausalLM"]]}, "architecture None is not known"),
        ({"architectures": ["Qwen2ForCausalLM"], "layer_types": ["full_attention"]}, "each of the 3 layers"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": "16"}, "sliding_window is '16'"),
    ],
)
def test_a_malformed_config_gets_a_sentence(changes: dict, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        spec_from_config(config_with("Llama", **changes), "config.json")


def with_own_head(directory: Path) -> Path:
    """The tied model in the directory with a head of its own stored beside the embedding; its config is left as it is."""
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_a_stored_head_that_differs_is_the_head_whatever_the_config_says(tmp_path, make_tiny) -> None:
    """transformers loads such a pair untied; and what is made from it says so."""
    directory = with_own_head(make_tiny(tmp_path / "model", "llama-tied"))
    weights = ModelWeights.open(directory)
    assert not weights.spec.tie_word_embeddings
    same_as_transformers(directory)
    quantize_model(directory, tmp_path / "int4", QuantizeOptions(method="rtn", group_size=32), CalibrationOptions())
    assert json.loads((tmp_path / "int4" / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(
        ModelWeights.open(tmp_path / "int4").lm_head(torch.bfloat16), weights.checkpoint.tensor("lm_head.weight")
    )
    (tmp_path / "copy").mkdir()
    copy_companions(weights.checkpoint, tmp_path / "copy")  # as build-engine does
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["tie_word_embeddings"] is False


def test_both_rope_spellings_read_alike() -> None:
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}}
    new = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0}}
    assert RopeSettings.from_config(old, 2048) == RopeSettings.from_config(new, 2048)
    assert RopeSettings.from_config({"rope_theta": 1e6}, 2048) == RopeSettings(theta=1e6)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 10000.0},
    ],
)
def test_either_rope_spelling_tells_the_same(rope: dict) -> None:
    spelled = with_both_spellings({"model_type": "llama", **rope})
    assert {**spelled, "model_type": "llama", **rope} == spelled  # nothing that was there changed
    meant = RopeSettings.from_config(rope, 2048)
    before_5 = {name: spelled.get(name) for name in ("rope_theta", "rope_scaling")}
    for spelling in (before_5, {"rope_parameters": spelled["rope_parameters"]}, spelled):
        assert RopeSettings.from_config(spelling, 2048) == meant
    from transformers import LlamaConfig

    assert dict(LlamaConfig(**spelled).rope_parameters).items() >= {"rope_theta": meant.theta}.items()


def test_a_config_without_rope_settings_gets_none() -> None:
    assert with_both_spellings({"model_type": "gpt2"}) == {"model_type": "gpt2"}


def test_unknown_rope_and_architecture_are_refused(tiny, tmp_path) -> None:
    with pytest.raises(InputError, match="yarn"):
        RopeSettings.from_config({"rope_scaling": {"type": "yarn"}}, 2048)
    for file in tiny("llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    text = (tmp_path / "config.json").read_text().replace("LlamaForCausalLM", "MambaForCausalLM")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match="MambaForCausalLM") as caught:
        ModelWeights.open(tmp_path)
    assert all(name in str(caught.value) for name in ARCHITECTURES)


@pytest.mark.parametrize("variant", ["llama", "mistral-window", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_after_a_cache_come_out_as_in_one_pass(tiny, variant: str, dtype: torch.dtype) -> None:
    weights = ModelWeights.open(tiny(variant))
    spec, block = weights.spec, weights.block(1, dtype)
    length, first = 40, 25  # longer than the window at both
    hidden = torch.randn(2, length, spec.hidden_size, generator=torch.Generator().manual_seed(5)).to(dtype)
    cos, sin = spec.rope.tables(spec.head_dim, length)
    window = spec.windows[1]
    mask = attention_mask(length, None, window)
    whole = block_forward(spec, block, hidden, cos, sin, mask=mask)
    cache = KeyValues(window)
    mask = attention_mask(first, None, window)
    parts = [block_forward(spec, block, hidden[:, :first], cos[:first], sin[:first], mask=mask, cache=cache)]
    for i in range(first, length):
        at = slice(i, i + 1)
        parts.append(block_forward(spec, block, hidden[:, at], cos[at], sin[at], cache=cache))
    torch.testing.assert_close(
        torch.cat(parts, 1), whole, **({} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05})
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [(1, 1), (4, 1), (2, 8), (17,)])
def test_a_weight_is_applied_to_a_few_rows_as_to_many(rows: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(*rows, 24), torch.randn(10, 24), torch.randn(10)
    exact = x.double() @ weight.double().t() + bias.double()
    found = apply_weight(x.to(dtype), weight.to(dtype), bias.to(dtype))
    assert found.shape == (*rows, 10)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.2)
    torch.testing.assert_close(apply_weight(x, weight), x @ weight.t())
