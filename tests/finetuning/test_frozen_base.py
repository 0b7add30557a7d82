"""Bases held in 4 bits: the weights that training sees, their products and gradients, and merging onto what training saw."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from support.peft_adapters import load_model, peft_model
from support.quantized_checkpoint import rounded, write_quantized

from qtk.adapters import nf4
from qtk.adapters.adapter import open_adapter
from qtk.adapters.merge import merge
from qtk.adapters.options import MergeOptions
from qtk.adapters.trained_base import trained_base
from qtk.checkpoint.manifest import read_manifest
from qtk.errors import InputError
from qtk.finetuning.frozen_base import BaseStorage, load_base, open_base
from qtk.finetuning.frozen_linear import DeployedWeight, FrozenLinear, Nf4Weight, StoredWeight
from qtk.finetuning.merge_deployed import merge_adapters
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.scheme_model import LinearScheme

CPU = torch.device("cpu")
INT4 = LinearScheme(4, 32, True)
IDS = torch.arange(20, 60)[None]


@pytest.mark.parametrize("shape", [(8, 64), (5, 24), (130, 128)])
def test_nf4_is_the_merges_rounding_in_half_a_byte_a_weight(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape).bfloat16()
    absmax = nf4.block_absmax(weight)
    stored = Nf4Weight(weight)
    assert torch.equal(stored.dense(torch.bfloat16), nf4.rounded(weight, absmax, nf4.double_quantized(absmax)))
    held = sum(buffer.nbytes for name, buffer in stored.named_buffers() if name != "pairs")
    assert held <= 0.5 * -(-weight.numel() // 64) * 64 + 1.1 * len(absmax) + 8


@pytest.mark.parametrize("scheme", [INT4, LinearScheme(4, 32, False), LinearScheme(8, 64, True)])
def test_a_deployed_weight_is_what_the_checkpoint_says(scheme: LinearScheme) -> None:
    torch.manual_seed(0)
    weight = rounded(torch.randn(16, 128), scheme)
    stored = DeployedWeight(weight)
    assert torch.equal(stored.dense(torch.float32), weight.dequantize())
    assert stored.codes.numel() == 16 * 128 * scheme.bits // 8


@pytest.mark.parametrize("bias", [None, torch.arange(16.0)])
@pytest.mark.parametrize("kind", ["nf4", "deployed"])
def test_a_frozen_product_has_the_gradient_of_the_plain_one(kind: str, bias: torch.Tensor | None) -> None:
    torch.manual_seed(0)
    weight = torch.randn(16, 64)
    stored: StoredWeight = Nf4Weight(weight) if kind == "nf4" else DeployedWeight(rounded(weight, INT4))
    frozen = FrozenLinear(stored, bias, torch.float32)
    x = torch.randn(2, 3, 64, requires_grad=True)
    plain = torch.nn.functional.linear(x, stored.dense(torch.float32), bias)
    torch.testing.assert_close(frozen(x), plain)
    (ours,) = torch.autograd.grad(frozen(x).square().sum(), x)
    (expected,) = torch.autograd.grad(plain.square().sum(), x)
    torch.testing.assert_close(ours, expected)
    assert not list(frozen.parameters())


@pytest.mark.parametrize("variant", ["llama", "llama-tied", "llama3-rope", "mistral-window", "qwen2", "qwen3"])
def test_a_float_base_is_the_model_that_transformers_loads(tiny, variant: str) -> None:
    base = load_base(ModelWeights.open(tiny(variant)), BaseStorage(torch.float32, CPU, nf4=False)).eval()
    expected = load_model(tiny(variant), dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(base(IDS).logits, expected(IDS).logits)
    assert not any(parameter.requires_grad for parameter in base.parameters())


@pytest.mark.parametrize("container", ["gptq", "awq", "compressed-tensors"])
def test_an_int4_base_is_its_dequantized_weights(tiny, tmp_path: Path, container: str) -> None:
    int4 = write_quantized(tiny("qwen2"), tmp_path / "int4", container, LinearScheme(4, 32, container != "awq"))
    weights = ModelWeights.open(int4)
    base = load_base(weights, BaseStorage(torch.float32, CPU, nf4=False)).eval()
    expected = load_model(tiny("qwen2"), dtype=torch.float32).eval()
    with torch.no_grad():
        for name, _ in weights.spec.all_linears():
            expected.get_submodule(name).weight.copy_(weights.float_linear(name, torch.float32))
        torch.testing.assert_close(base(IDS).logits, expected(IDS).logits)


def trained(base: torch.nn.Module, adapter: Path) -> torch.Tensor:
    """The logits that training had: those of the base as it was held, with the adapter beside it."""
    from peft import PeftModel

    with torch.no_grad():
        return PeftModel.from_pretrained(base, adapter).eval()(IDS).logits


def test_merging_follows_the_nf4_base_of_a_qlora_adapter(train, tiny, tmp_path: Path) -> None:
    report = train("adapter", qlora=True, epochs=6)
    assert report.base.rounding == "nf4"
    base = load_base(open_base(tiny("llama"), nf4=True), BaseStorage(torch.float32, CPU, nf4=True)).eval()
    wanted = trained(base, tmp_path / "adapter")
    distance = {}
    for choice in ("auto", "nf4", "none"):
        options = MergeOptions.model_validate({"qlora_base": choice})
        result = merge(tiny("llama"), [tmp_path / "adapter"], tmp_path / choice, options)
        assert result.nf4_rounded == (0 if choice == "none" else 21)
        with torch.no_grad():
            distance[choice] = (load_model(tmp_path / choice, dtype=torch.float32)(IDS).logits - wanted).abs().max()
    assert distance["auto"] == distance["nf4"] < 0.2 * distance["none"]
    assert read_manifest(tmp_path / "auto").notes["base_rounding"] == "nf4"


def test_adapters_of_different_bases_have_none_in_common(train, tiny, tmp_path: Path) -> None:
    train("nf4", qlora=True, epochs=1)
    train("plain", epochs=1)
    adapters = [tmp_path / "nf4", tmp_path / "plain"]
    with pytest.raises(InputError, match="--qlora-base nf4 or --qlora-base none"):
        merge(tiny("llama"), adapters, tmp_path / "merged", MergeOptions())
    merge(tiny("llama"), adapters, tmp_path / "merged", MergeOptions(qlora_base="none"))


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_of_an_int4_base_is_merged_onto_the_deployed_weights(
    train, tiny, tmp_path: Path, dora: bool
) -> None:
    int4 = write_quantized(tiny("llama"), tmp_path / "int4", "gptq", INT4)
    report = train("adapter", base=int4, epochs=6, dora=dora)
    assert (report.base.rounding, report.base.container) == ("deployed", "gptq")
    base = load_base(open_base(int4, nf4=False), BaseStorage(torch.float32, CPU, nf4=False)).eval()
    plain = base(IDS).logits.detach()
    wanted = trained(base, tmp_path / "adapter")
    result = merge_adapters(int4, [tmp_path / "adapter"], tmp_path / "merged", MergeOptions())
    assert result.tensors_changed == 21
    with torch.no_grad():
        merged = load_model(tmp_path / "merged", dtype=torch.float32)(IDS).logits
    assert (merged - wanted).abs().max() < 0.1 * (plain - wanted).abs().max()
    with pytest.raises(InputError, match="is a float model, and not what an adapter was trained on"):
        merge_adapters(tiny("llama"), [tmp_path / "adapter"], tmp_path / "other", MergeOptions())


def test_an_int4_base_takes_no_other_adapter(train, tiny, tmp_path: Path) -> None:
    int4 = write_quantized(tiny("llama"), tmp_path / "int4", "gptq", INT4)
    other = write_quantized(tiny("llama"), tmp_path / "other", "gptq", LinearScheme(4, 64, True))
    train("adapter", base=int4, epochs=1)
    train("float", epochs=1)
    with pytest.raises(InputError, match="not those that these adapters were trained on"):
        merge_adapters(other, [tmp_path / "adapter"], tmp_path / "merged", MergeOptions())
    with pytest.raises(InputError, match="is quantized"):
        merge_adapters(int4, [tmp_path / "float"], tmp_path / "merged", MergeOptions(any_base=True))
    with pytest.raises(InputError, match="quantized already and is held as it is"):
        train("nf4", base=int4, qlora=True)


def test_an_adapter_from_elsewhere_says_nothing_of_its_base(make_adapter, tiny, tmp_path: Path) -> None:
    adapter = make_adapter(tiny("llama"), tmp_path / "adapter")
    assert trained_base(adapter) is None
    assert open_adapter(adapter)
    assert merge(tiny("llama"), [adapter], tmp_path / "merged", MergeOptions()).nf4_rounded == 0
    shutil.rmtree(tmp_path / "merged")
    (adapter / "training.json").write_text('{"options": {}}')  # of another trainer
    assert merge(tiny("llama"), [adapter], tmp_path / "merged", MergeOptions()).nf4_rounded == 0
    assert peft_model(tiny("llama"), adapter)
