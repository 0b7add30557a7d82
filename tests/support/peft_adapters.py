"""Adapters made and merged by peft itself: the inputs of the merge's tests, and its oracle."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load_model(directory: Path, **settings: Any) -> Any:
    """The model of a directory, in the dtype it is stored in unless told otherwise."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, **{"dtype": "auto", **settings})


def make_adapter(base: Path, out: Path, *, seed: int = 1, resize: int | None = None, **lora: Any) -> Path:
    """An adapter that peft made and saved, every trained tensor moved away from where it starts (B starts at zero)."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = load_model(base, dtype=torch.float32)
    if resize:
        model.resize_token_embeddings(resize, mean_resizing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(
            model, LoraConfig(**{"r": 8, "task_type": "CAUSAL_LM", "target_modules": LINEARS, **lora})
        )
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * (0.1 if "bias" in name else 0.05))
        wrapped.save_pretrained(out)
    return out


def peft_model(base: Path, adapter: Path, *, resize: int | None = None, **settings: Any) -> Any:
    """The base with the adapter put on by peft, not merged."""
    from peft import PeftModel

    model = load_model(base, **settings)
    if resize:
        model.resize_token_embeddings(resize, mean_resizing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(model, adapter).eval()


def peft_merged(base: Path, adapter: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """The weights after peft's merge_and_unload."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft_model(base, adapter, **settings).merge_and_unload().state_dict()


def logits(model: Any, vocabulary: int = 320) -> torch.Tensor:
    """Logits of a fixed row of tokens that covers the vocabulary's ends."""
    tokens = torch.cat([torch.arange(0, 20), torch.arange(vocabulary - 20, vocabulary)])[None]
    with torch.no_grad():
        return model(tokens).logits.float()


@pytest.fixture(scope="session", name="load_model")
def _load_model():
    return load_model


@pytest.fixture(scope="session", name="make_adapter")
def _make_adapter():
    return make_adapter


@pytest.fixture(scope="session", name="peft_model")
def _peft_model():
    return peft_model


@pytest.fixture(scope="session", name="peft_merged")
def _peft_merged():
    return peft_merged


@pytest.fixture(scope="session", name="logits")
def _logits():
    return logits
