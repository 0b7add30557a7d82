"""Our block forward against transformers, for every architecture: float32, padded and not."""

from __future__ import annotations

import pytest
import torch
from conftest import VARIANTS

from qtk.errors import InputError
from qtk.models.forward import attention_mask, block_forward, rms_norm
from qtk.models.registry import ARCHITECTURES
from qtk.models.rope import RopeSettings
from qtk.quantization.model_weights import ModelWeights


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


def test_both_rope_spellings_read_alike() -> None:
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}}
    new = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0}}
    assert RopeSettings.from_config(old, 2048) == RopeSettings.from_config(new, 2048)
    assert RopeSettings.from_config({"rope_theta": 1e6}, 2048) == RopeSettings(theta=1e6)


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
