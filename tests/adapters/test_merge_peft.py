"""The merge against peft's own, case by case: float32 models for the arithmetic, bfloat16 ones for the rounding."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.peft_adapters import LINEARS

from qtk.adapters.merge import merge
from qtk.adapters.options import MergeOptions
from qtk.checkpoint.reader import Checkpoint
from qtk.models.rope import with_both_spellings


@pytest.fixture(scope="session")
def float_tiny(tmp_path_factory: pytest.TempPathFactory, make_tiny):
    """float_tiny("qwen2") -> a tiny float32 model of that variant, made once a session."""
    made: dict[str, Path] = {}

    def get(variant: str = "llama") -> Path:
        if variant not in made:
            made[variant] = make_tiny(tmp_path_factory.mktemp("float") / variant, variant, dtype=torch.float32)
        return made[variant]

    return get


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2, whose linears store their weights [in, out]; square ones among them."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("float") / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=320, n_positions=64, n_embd=64, n_layer=2, n_head=4)).save_pretrained(out)
    return out


def assert_equals_peft(merged: Path, expected: dict[str, torch.Tensor], *, atol: float = 2e-6) -> None:
    ours = Checkpoint(merged)
    names = set(expected) - ({"lm_head.weight"} if "lm_head.weight" not in ours else set())
    assert set(ours.names) == names
    for name in names:
        torch.testing.assert_close(
            ours.tensor(name).float(), expected[name].float(), atol=atol, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


CASES: dict[str, dict[str, Any]] = {
    "lora": {"lora_alpha": 16},
    "rslora": {"use_rslora": True, "lora_alpha": 4},
    "dora": {"use_dora": True, "lora_alpha": 16},
    "dora-rslora": {"use_dora": True, "use_rslora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 4, r"layers\.1\.mlp\.up_proj": 2},
        "alpha_pattern": {r".*\.v_proj": 32, "model.layers.2.mlp.down_proj": 1},
    },
    "patterns-rslora": {"rank_pattern": {"down_proj": 3}, "use_rslora": True},
    "some-layers": {"layers_to_transform": [0, 2], "layers_pattern": "layers"},
    "one-layer": {"layers_to_transform": 1},
    "regex": {"target_modules": r".*\.(0|2)\.self_attn\.(q|v)_proj"},
    "excluded": {"exclude_modules": ["model.layers.0.mlp.up_proj", "k_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "saved-norm-and-head": {"modules_to_save": ["norm", "lm_head"]},
    "saved-embedding": {"modules_to_save": ["embed_tokens"]},
    "embedding-and-head": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "embedding-dora": {"target_modules": ["embed_tokens", "lm_head", "q_proj"], "use_dora": True},
    "trained-tokens": {"trainable_token_indices": [3, 300]},
    "trained-tokens-of-both": {"trainable_token_indices": {"embed_tokens": [3, 300], "lm_head": [5]}},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "fan-in-fan-out-set-in-vain": {"fan_in_fan_out": True},
}


@pytest.mark.parametrize("case", CASES)
def test_equals_peft(float_tiny, tmp_path: Path, case: str, make_adapter, peft_merged) -> None:
    base = float_tiny("llama")
    adapter = make_adapter(base, tmp_path / "adapter", **CASES[case])
    result = merge(base, [adapter], tmp_path / "merged", MergeOptions())
    assert result.tensors_changed > 0
    assert_equals_peft(tmp_path / "merged", peft_merged(base, adapter))
    spelled = with_both_spellings(json.loads((base / "config.json").read_bytes()))
    assert json.loads((tmp_path / "merged/config.json").read_bytes()) == spelled


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize("variant", ["qwen2", "qwen3", "mistral"])
def test_biases_and_architectures_equal_peft(
    float_tiny, tmp_path: Path, variant: str, bias: str, make_adapter, peft_merged
) -> None:
    base = float_tiny(variant)
    adapter = make_adapter(base, tmp_path / "adapter", bias=bias, target_modules=["q_proj", "down_proj"])
    result = merge(base, [adapter], tmp_path / "merged", MergeOptions())
    # Three layers: q_proj and down_proj; of Qwen2 also the biases of q, or of q, k and v.
    assert result.tensors_changed == 6 + (0 if variant != "qwen2" else 3 if bias == "lora_only" else 9)
    assert_equals_peft(tmp_path / "merged", peft_merged(base, adapter))


@pytest.mark.parametrize("case", ["lora", "dora"])
def test_transposed_weights_equal_peft(gpt2: Path, tmp_path: Path, case: str, make_adapter, peft_merged) -> None:
    adapter = make_adapter(
        gpt2,
        tmp_path / "adapter",
        target_modules=["c_attn", "c_proj", "c_fc"],
        fan_in_fan_out=True,
        use_dora=case == "dora",
    )
    merge(gpt2, [adapter], tmp_path / "merged", MergeOptions())
    assert_equals_peft(tmp_path / "merged", peft_merged(gpt2, adapter))


@pytest.mark.parametrize("case", ["lora", "rslora", "dora", "patterns", "embedding-and-head"])
def test_bf16_is_rounded_once(tiny, tmp_path: Path, case: str, make_adapter, peft_merged) -> None:
    base = tiny("llama")
    adapter = make_adapter(base, tmp_path / "adapter", **CASES[case])
    merge(base, [adapter], tmp_path / "merged", MergeOptions())
    ours, exact = Checkpoint(tmp_path / "merged"), peft_merged(base, adapter, dtype=torch.float32)
    rounded = peft_merged(base, adapter)
    changed = 0
    for name in ours.names:
        tensor = ours.tensor(name)
        assert tensor.dtype == torch.bfloat16
        # Half a unit in the last of 8 bits, and no farther from the exact sum than peft's own bf16 merge.
        distance = (tensor.float() - exact[name]).abs()
        assert (distance <= exact[name].abs() * 2**-8 + 1e-6).all(), name
        assert distance.mean() <= (rounded[name].float() - exact[name]).abs().mean() + 1e-9, name
        changed += not torch.equal(tensor, Checkpoint(base).tensor(name))
    assert changed >= 3


def test_untouched_tensors_and_files_are_the_same_bytes(tiny, tmp_path: Path, make_adapter) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny("qwen2"), base)
    config = with_both_spellings(json.loads((base / "config.json").read_bytes()))
    (base / "config.json").write_text(json.dumps(config))  # in a layout that qtk would not write
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["v_proj"])
    result = merge(base, [adapter], tmp_path / "merged", MergeOptions())
    assert (result.tensors_changed, result.untied, result.vocabulary) == (3, False, None)
    before, after = Checkpoint(base), Checkpoint(tmp_path / "merged")
    assert before.names == after.names
    for name in before.names:
        same = torch.equal(before.tensor(name).view(torch.int16), after.tensor(name).view(torch.int16))
        assert same == (not name.endswith("v_proj.weight"))
    for path in [base / "config.json", *before.companion_files]:
        assert (tmp_path / "merged" / path.name).read_bytes() == path.read_bytes()


def test_shards_come_out_as_they_should(tmp_path: Path, load_model, logits, make_adapter, make_tiny) -> None:
    base = make_tiny(tmp_path / "base", "llama", shard_size="300KB")
    adapter = make_adapter(base, tmp_path / "adapter")
    one = merge(base, [adapter], tmp_path / "one", MergeOptions())
    merge(base, [adapter], tmp_path / "many", MergeOptions(shard_gb=0.0003))
    assert (tmp_path / "one/model.safetensors").is_file()
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 3
    whole, parts = Checkpoint(tmp_path / "one"), Checkpoint(tmp_path / "many")
    assert all(torch.equal(whole.tensor(name), parts.tensor(name)) for name in whole.names)
    assert one.bytes_written == sum(whole.info(name).nbytes for name in whole.names)
    torch.testing.assert_close(logits(load_model(tmp_path / "many")), logits(load_model(tmp_path / "one")))


def test_several_adapters_equal_pefts_cat(float_tiny, tmp_path: Path, make_adapter, peft_model) -> None:
    base = float_tiny("llama")
    first = make_adapter(base, tmp_path / "a", r=8, lora_alpha=16, target_modules=["q_proj", "embed_tokens"])
    second = make_adapter(base, tmp_path / "b", r=4, seed=2, target_modules=["q_proj", "up_proj"], use_rslora=True)
    weights = (0.7, -0.4)
    merge(base, [first, second], tmp_path / "merged", MergeOptions(weight=weights))
    model = peft_model(base, first)
    model.load_adapter(second, "second")
    model.add_weighted_adapter(["default", "second"], list(weights), "both", combination_type="cat")
    model.set_adapter("both")
    assert_equals_peft(tmp_path / "merged", model.merge_and_unload().state_dict())


def test_weights_default_to_one_and_scale_one_adapter(float_tiny, tmp_path: Path, make_adapter) -> None:
    base = float_tiny("llama")
    adapter = make_adapter(base, tmp_path / "a", target_modules=["q_proj"])
    name = "model.layers.0.self_attn.q_proj.weight"
    weight = Checkpoint(base).tensor(name)
    deltas = []
    for number, options in enumerate([MergeOptions(), MergeOptions(weight=(0.5,))]):
        merge(base, [adapter], tmp_path / str(number), options)
        deltas.append(Checkpoint(tmp_path / str(number)).tensor(name) - weight)
    torch.testing.assert_close(deltas[1], deltas[0] / 2, atol=1e-7, rtol=1e-4)
    merge(base, [adapter, adapter], tmp_path / "twice", MergeOptions())
    torch.testing.assert_close(
        Checkpoint(tmp_path / "twice").tensor(name) - weight, deltas[0] * 2, atol=1e-6, rtol=1e-4
    )


# What an adapter does to a tied embedding: (settings, whether the result stays tied). peft's own merge adds both updates
# into the one shared weight (its issue 2777), so the oracle is the logits of the adapted model before any merge.
TIED: dict[str, tuple[dict[str, Any], bool]] = {
    "linears only": ({}, True),
    "saved embedding": ({"modules_to_save": ["embed_tokens"]}, False),
    "saved head": ({"modules_to_save": ["lm_head"]}, False),
    "saved both": ({"modules_to_save": ["embed_tokens", "lm_head"]}, False),
    "saved, tying ensured": ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
    "saved head, tying ensured": ({"modules_to_save": ["lm_head"], "ensure_weight_tying": True}, True),
    "embedding": ({"target_modules": ["embed_tokens", "q_proj"]}, False),
    "head": ({"target_modules": ["lm_head", "q_proj"]}, False),
    "both": ({"target_modules": ["lm_head", "embed_tokens"]}, False),
    "embedding, tying ensured": ({"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, True),
    "both, tying ensured": ({"target_modules": ["lm_head", "embed_tokens"], "ensure_weight_tying": True}, True),
    "tokens": ({"trainable_token_indices": [1, 300]}, True),
    "tokens of both alike": ({"trainable_token_indices": {"embed_tokens": [1, 5], "lm_head": [1, 5]}}, True),
    "tokens of both apart": ({"trainable_token_indices": {"embed_tokens": [1, 5], "lm_head": [2]}}, False),
    "tokens of the head": ({"trainable_token_indices": {"lm_head": [1, 5]}}, False),
}


@pytest.mark.parametrize("case", TIED)
def test_tied_embeddings_follow_the_adapted_model(
    float_tiny, tmp_path: Path, case: str, load_model, logits, make_adapter, peft_model
) -> None:
    settings, tied = TIED[case]
    base = float_tiny("llama-tied")
    adapter = make_adapter(base, tmp_path / "adapter", **settings)
    result = merge(base, [adapter], tmp_path / "merged", MergeOptions())
    assert result.untied == (not tied)
    assert json.loads((tmp_path / "merged/config.json").read_bytes())["tie_word_embeddings"] == tied
    assert ("lm_head.weight" in Checkpoint(tmp_path / "merged")) == (not tied)
    expected = logits(peft_model(base, adapter))
    torch.testing.assert_close(logits(load_model(tmp_path / "merged")), expected, atol=2e-4, rtol=1e-4)


RESIZED: dict[str, dict[str, Any]] = {
    "saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "resized only": {},
    "tokens": {"trainable_token_indices": [320, 321]},
    "updated": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
}


@pytest.mark.parametrize("variant", ["llama", "llama-tied"])
@pytest.mark.parametrize("case", RESIZED)
def test_added_tokens_resize_the_vocabulary(
    float_tiny, tmp_path: Path, variant: str, case: str, load_model, logits, make_adapter, peft_model
) -> None:
    base = float_tiny(variant)
    adapter = make_adapter(base, tmp_path / "adapter", resize=328, **RESIZED[case])
    (adapter / "tokenizer.json").write_text('{"of": "the adapter"}')
    result = merge(base, [adapter], tmp_path / "merged", MergeOptions())
    assert result.vocabulary == 328
    assert result.tokenizer_from == str(adapter)
    assert json.loads((tmp_path / "merged/config.json").read_bytes())["vocab_size"] == 328
    assert (tmp_path / "merged/tokenizer.json").read_text() == '{"of": "the adapter"}'
    expected = logits(peft_model(base, adapter, resize=328), 328)
    torch.testing.assert_close(logits(load_model(tmp_path / "merged"), 328), expected, atol=2e-4, rtol=1e-4)


def test_a_tied_config_beside_a_head_of_its_own_is_corrected(
    tmp_path: Path, load_model, logits, make_adapter, make_tiny, peft_model
) -> None:
    """transformers loads such a base untied, so its merge is that of an untied base, and says so."""
    base = make_tiny(tmp_path / "base", "llama-tied", dtype=torch.float32)
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "embed_tokens"])
    merge(base, [adapter], tmp_path / "merged", MergeOptions())
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is False
    torch.testing.assert_close(
        logits(load_model(tmp_path / "merged")), logits(peft_model(base, adapter)), atol=2e-4, rtol=1e-4
    )


def test_a_vocabulary_may_shrink(float_tiny, tmp_path: Path, load_model, logits, make_adapter, peft_model) -> None:
    base = float_tiny("llama")
    adapter = make_adapter(base, tmp_path / "adapter", resize=304, modules_to_save=["embed_tokens", "lm_head"])
    assert merge(base, [adapter], tmp_path / "merged", MergeOptions()).vocabulary == 304
    expected = logits(peft_model(base, adapter, resize=304), 304)
    torch.testing.assert_close(logits(load_model(tmp_path / "merged"), 304), expected, atol=2e-4, rtol=1e-4)


@pytest.fixture(scope="session")
def rounded_by_bitsandbytes(load_model):
    """The base as QLoRA loads it: in bf16, then every linear but the head to NF4 and back."""

    def rounded_by_bitsandbytes_of(base: Path, out: Path) -> Path:
        functional = pytest.importorskip("bitsandbytes.functional")
        model = load_model(base, dtype=torch.bfloat16)
        with torch.no_grad():
            for name, module in model.named_modules():
                if isinstance(module, torch.nn.Linear) and name != "lm_head":
                    codes, state = functional.quantize_4bit(
                        module.weight, blocksize=64, compress_statistics=True, quant_type="nf4"
                    )
                    # The oracle's own 8-bit rounding of block magnitudes strays from the nearest level now and then
                    # (test_merge_nf4.py), so that part of its state is replaced before it dequantizes.
                    state.absmax, state.nested = nearest_magnitudes(module.weight), False
                    module.weight.copy_(functional.dequantize_4bit(codes, state))
        model.save_pretrained(out)
        return out

    return rounded_by_bitsandbytes_of


def test_qlora_base_is_bitsandbytes_rounding_with_pefts_update(
    tiny, tmp_path: Path, make_adapter, peft_merged, rounded_by_bitsandbytes
) -> None:
    base = tiny("llama")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "lm_head"], lora_alpha=16)
    result = merge(base, [adapter], tmp_path / "merged", MergeOptions(qlora_base="nf4"))
    assert result.nf4_rounded == 3 * len(LINEARS)
    expected = peft_merged(rounded_by_bitsandbytes(base, tmp_path / "rounded"), adapter, dtype=torch.float32)
    ours, before = Checkpoint(tmp_path / "merged"), Checkpoint(base)
    for name in ours.names:
        torch.testing.assert_close(ours.tensor(name), expected[name].to(torch.bfloat16), atol=0, rtol=2**-7)
        linear = name.endswith("proj.weight")
        assert torch.equal(ours.tensor(name), before.tensor(name)) == (not linear and name != "lm_head.weight")
        if linear and "q_proj" not in name:
            assert torch.equal(ours.tensor(name), expected[name].to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("lora", [{}, {"use_dora": True}, {"bias": "lora_only"}], ids=["lora", "dora", "bias"])
def test_qlora_rounds_the_base_to_bf16_before_nf4_whatever_it_is_stored_in(
    tmp_path: Path, dtype: torch.dtype, lora: dict, make_adapter, make_tiny, peft_merged, rounded_by_bitsandbytes
) -> None:
    """Training loads the base in bf16, so a finer base on disk is not what the adapter saw."""
    base = make_tiny(tmp_path / "base", "qwen2", dtype=dtype)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "down_proj"], lora_alpha=16, **lora)
    merge(base, [adapter], tmp_path / "merged", MergeOptions(qlora_base="nf4"))
    expected = peft_merged(rounded_by_bitsandbytes(base, tmp_path / "rounded"), adapter, dtype=torch.float32)
    ours, before = Checkpoint(tmp_path / "merged"), Checkpoint(base)
    for name in ours.names:
        got, adapted = ours.tensor(name), "q_proj" in name or "down_proj" in name
        assert got.dtype == dtype
        if name.endswith("proj.weight"):
            tolerance = {"atol": 2e-5, "rtol": 2**-9} if adapted else {"atol": 0, "rtol": 0}
            torch.testing.assert_close(got, expected[name].to(dtype), **tolerance)
        elif adapted and lora.get("bias"):
            torch.testing.assert_close(got, expected[name].to(dtype), atol=1e-5, rtol=2**-9)
        else:
            assert torch.equal(got, before.tensor(name))


def nearest_magnitudes(weight: torch.Tensor) -> torch.Tensor:
    """Blocks' magnitudes after 8 bits, by plain distance to bitsandbytes' own levels."""
    from bitsandbytes.functional import create_dynamic_map

    levels = create_dynamic_map()
    absmax = weight.float().view(-1, 64).abs().amax(1)
    offset = absmax.mean()
    blocks = torch.split(absmax - offset, 256)
    back = [levels[(b[:, None] / b.abs().max() - levels).abs().argmin(1)] * b.abs().max() for b in blocks]
    return torch.cat(back) + offset


def test_scales_are_what_peft_says() -> None:
    from qtk.adapters.arithmetic import scaling

    assert scaling(16, 8, rank_stabilized=False) == 2
    assert scaling(16, 64, rank_stabilized=True) == 16 / math.sqrt(64)
