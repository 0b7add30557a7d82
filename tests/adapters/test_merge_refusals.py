"""What a merge refuses, with which sentence: wrong adapters, wrong bases, damaged files. Nothing is ever left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qtk.adapters.base_identity import disagreement
from qtk.adapters.config import read_config
from qtk.adapters.merge import merge
from qtk.adapters.options import MergeOptions
from qtk.checkpoint.reader import Checkpoint
from qtk.errors import InputError

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def base(tiny) -> Path:
    return tiny("llama")


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory, make_adapter) -> Path:
    return make_adapter(base, tmp_path_factory.mktemp("made") / "adapter", target_modules=["q_proj", "down_proj"])


@pytest.fixture
def adapter(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "adapter"))


def configure(directory: Path, name: str = "adapter_config.json", **changes: Any) -> None:
    path = directory / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(directory: Path, change: Any, name: str = WEIGHTS) -> None:
    tensors = load_file(directory / name)
    change(tensors)
    save_file(tensors, directory / name, metadata={"format": "pt"})


def refusal(base: Path, adapters: Path | list[Path], tmp_path: Path, **options: Any) -> str:
    """The sentence of the refusal; asserts that neither the output nor anything beside it was left."""
    adapters = adapters if isinstance(adapters, list) else [adapters]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError) as caught:
        merge(base, adapters, tmp_path / "out", MergeOptions(**options))
    assert sorted(tmp_path.iterdir()) == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("init", "name"),
    [
        ("pissa", "PiSSA"),
        ("pissa_niter_16", "PiSSA"),
        ("olora", "OLoRA"),
        ("corda", "CorDA"),
        ("loftq", "LoftQ"),
        ("lora_ga", "LoRA-GA"),
        ("something_new", "something_new"),
    ],
)
def test_initializations_that_changed_the_base(base, adapter, tmp_path, init: str, name: str) -> None:
    configure(adapter, init_lora_weights=init)
    assert name in refusal(base, adapter, tmp_path)


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal", "mica", None])
def test_initializations_that_left_the_base_alone_are_taken(adapter, init: object) -> None:
    configure(adapter, init_lora_weights=init)
    assert read_config(adapter).r == 8


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_bdlora", {"nblocks": 2}),
        ("alora_invocation_tokens", [1, 2]),
        ("lora_bias", True),
        ("use_qalora", True),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("megatron_config", {"hidden_size": 1}),
        ("arrow_config", {"top_k": 3}),
        ("kasa_config", {"beta": 1e-4}),
        ("monteclora_config", {"num_samples": 8}),
        ("velora_config", {"num_groups": 4}),
    ],
)
def test_kinds_that_are_not_handled(base, adapter, tmp_path, field: str, value: object) -> None:
    configure(adapter, **{field: value}, init_lora_weights="pissa")
    sentence = refusal(base, adapter, tmp_path)
    assert field in sentence
    assert "PiSSA" in sentence  # all complaints at once


@pytest.mark.parametrize("kind", ["ADALORA", "IA3", "LOHA", "PROMPT_TUNING", None])
def test_other_peft_types(base, adapter, tmp_path, kind: str | None) -> None:
    configure(adapter, peft_type=kind)
    assert repr(kind) in refusal(base, adapter, tmp_path)


def test_malformed_configs(base, adapter, tmp_path) -> None:
    configure(adapter, r=0, rank_pattern={"q_proj": "many"}, bias="some")
    sentence = refusal(base, adapter, tmp_path)
    assert all(word in sentence for word in ("r:", "rank_pattern.q_proj", "bias"))
    configure(adapter, r=8, rank_pattern={}, bias="none", target_modules="([")
    assert "regular expression" in refusal(base, adapter, tmp_path)
    (adapter / "adapter_config.json").write_text("{")
    assert "not valid JSON" in refusal(base, adapter, tmp_path)
    (adapter / "adapter_config.json").unlink()
    assert "no adapter_config.json" in refusal(base, adapter, tmp_path)


def test_what_is_no_adapter(base, adapter, tmp_path) -> None:
    assert "does not exist" in refusal(base, tmp_path / "absent", tmp_path)
    assert "is not a directory" in refusal(base, adapter / WEIGHTS, tmp_path)
    assert "model directory, not an adapter" in refusal(base, base, tmp_path)
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    assert "pickle" in refusal(base, adapter, tmp_path)
    (adapter / "adapter_model.bin").unlink()
    assert f"no {WEIGHTS}" in refusal(base, adapter, tmp_path)
    (adapter / WEIGHTS).write_bytes(b"garbage garbage")
    assert "not a safetensors file" in refusal(base, adapter, tmp_path)


def test_a_truncated_adapter(base, adapter, tmp_path) -> None:
    raw = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(raw[:-10])
    assert "truncated" in refusal(base, adapter, tmp_path)


def test_an_adapter_of_other_shapes_lists_them_all(tiny, tmp_path, make_adapter, make_tiny) -> None:
    other = make_tiny(tmp_path / "other", "llama", hidden_size=64, num_hidden_layers=4)
    adapter = make_adapter(other, tmp_path / "adapter", target_modules=["q_proj"])
    sentence = refusal(tiny("llama"), adapter, tmp_path, any_base=True)
    assert "layers.{0-2}.self_attn.q_proj.lora_A.weight: shape [8, 64], but [8, 128] fits" in sentence
    assert "layers.{0-2}.self_attn.q_proj.lora_B.weight: shape [64, 8], but [128, 8] fits" in sentence
    assert sentence.count("layers.3") == 2  # left over: the base has three layers


def test_a_rank_that_the_config_does_not_say(base, adapter, tmp_path) -> None:
    configure(adapter, rank_pattern={"q_proj": 4})
    assert "at rank 4" in refusal(base, adapter, tmp_path)


def test_tensors_left_over_are_named(base, adapter, tmp_path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors[PREFIX + "model.layers.0.self_attn.z_proj.lora_A.weight"] = torch.ones(8, 128)
        tensors[PREFIX + "model.layers.0.self_attn.q_proj.lora_A.bias"] = torch.ones(8)
        tensors[PREFIX + "classifier.weight"] = torch.ones(8)
        tensors[PREFIX + "classifier.modules_to_save.bias"] = torch.ones(8)
        tensors[PREFIX + "model.layers.0.self_attn.q_proj.lora_diag"] = torch.ones(8)
        tensors[PREFIX + "model.layers.1.self_attn.k_proj.lora_A.weight"] = torch.ones(8, 128)
        tensors[PREFIX + "model.layers.1.self_attn.k_proj.lora_B.weight"] = torch.ones(64, 8)

    rewrite(adapter, add)
    sentence = refusal(base, adapter, tmp_path)
    for name in ("z_proj.lora_A.weight", "q_proj.lora_A.bias", "classifier.weight", "classifier.modules_to_save.bias"):
        assert f"{name}: left over" in sentence
    assert "lora_diag: left over" in sentence
    assert "adapter_config.json does not target model.layers.1.self_attn.k_proj" in sentence


def test_what_the_config_says_was_trained_whole_must_be_there(base, adapter, tmp_path) -> None:
    configure(adapter, modules_to_save=["lm_head"], trainable_token_indices=[3, 4])
    sentence = refusal(base, adapter, tmp_path)
    assert "lm_head: adapter_config.json saves it whole" in sentence
    assert "trainable_token_indices: adapter_config.json names tokens" in sentence


def test_tensors_that_are_missing_are_named(base, adapter, tmp_path) -> None:
    def remove(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[PREFIX + "model.layers.0.self_attn.q_proj.lora_B.weight"]
        for part in "AB":
            del tensors[PREFIX + f"model.layers.2.mlp.down_proj.lora_{part}.weight"]

    rewrite(adapter, remove)
    sentence = refusal(base, adapter, tmp_path)
    assert "q_proj.lora_A.weight: its lora_A or lora_B is missing" in sentence
    assert "model.layers.2.mlp.down_proj: adapter_config.json targets it" in sentence


def test_dora_without_its_vector_and_a_vector_without_dora(base, adapter, tmp_path) -> None:
    configure(adapter, use_dora=True)
    assert refusal(base, adapter, tmp_path).count("lora_magnitude_vector is missing") == 2, (
        "two linears of each of three layers"
    )
    configure(adapter, use_dora=False)
    name = PREFIX + "model.layers.0.self_attn.q_proj.lora_magnitude_vector"
    rewrite(adapter, lambda tensors: tensors.update({name: torch.ones(128)}))
    assert "use_dora is not set" in refusal(base, adapter, tmp_path)


def test_older_names_are_read(base, adapter, tmp_path) -> None:
    merge(base, [adapter], tmp_path / "new", MergeOptions())

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            old = (
                name.removeprefix(PREFIX).replace(".weight", ".default.weight").replace("model.", "_orig_mod.model.", 1)
            )
            tensors[old] = tensors.pop(name)

    rewrite(adapter, rename)
    merge(base, [adapter], tmp_path / "old", MergeOptions())
    assert (tmp_path / "new/model.safetensors").read_bytes() == (tmp_path / "old/model.safetensors").read_bytes()


def test_nan_and_infinity_are_named(base, adapter, tmp_path) -> None:
    damaged = Path(shutil.copytree(base, tmp_path / "base"))
    broken = ("model.layers.1.self_attn.q_proj.weight", "model.norm.weight", "lm_head.weight")

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        for name, value in zip(broken, (float("nan"), float("inf"), float("-inf")), strict=True):
            tensors[name].view(-1)[-1] = value

    rewrite(damaged, damage, "model.safetensors")
    sentence = refusal(damaged, adapter, tmp_path, any_base=True)
    assert all(name in sentence for name in broken)
    assert "3 tensors" in sentence
    name = PREFIX + "model.layers.0.self_attn.q_proj.lora_B.weight"
    rewrite(adapter, lambda tensors: tensors[name].fill_(float("nan")))
    assert name in refusal(base, adapter, tmp_path)


def test_an_update_too_large_for_the_dtype(tmp_path, make_adapter, make_tiny) -> None:
    base = make_tiny(tmp_path / "base", "llama", dtype=torch.float16)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"], lora_alpha=1e8)
    sentence = refusal(base, adapter, tmp_path)
    assert "too large for their dtype" in sentence
    assert "model.layers.{0-2}.self_attn.q_proj.weight" in sentence


def test_a_base_that_cannot_be_merged_into(base, adapter, tmp_path) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "base"))
    configure(copy, "config.json", quantization_config={"quant_method": "gptq"})
    assert "is quantized (gptq)" in refusal(copy, adapter, tmp_path)
    configure(copy, "config.json", quantization_config=None, architectures=["MambaForCausalLM"])
    raw = json.loads((copy / "config.json").read_text())
    del raw["quantization_config"]
    (copy / "config.json").write_text(json.dumps(raw))
    sentence = refusal(copy, adapter, tmp_path)
    assert all(name in sentence for name in ("MambaForCausalLM", "LlamaForCausalLM", "Qwen3ForCausalLM"))
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert "pickle" in refusal(copy, adapter, tmp_path)


class TestAnotherBase:
    """base_model_name_or_path: refused where it is known to be another model, taken where it says nothing."""

    def named(self, adapter: Path, name: str | None) -> Path:
        configure(adapter, base_model_name_or_path=name)
        return adapter

    def take(self, base: Path, adapter: Path, tmp_path: Path, **options: Any) -> None:
        merge(base, [adapter], tmp_path / "out", MergeOptions(**options))
        shutil.rmtree(tmp_path / "out")

    def test_a_directory_with_other_weights(self, base, adapter, tmp_path, make_tiny) -> None:
        other = make_tiny(tmp_path / "other", "llama", rope_parameters={"rope_type": "default", "rope_theta": 5.0})
        rewrite(other, lambda tensors: tensors["model.norm.weight"].add_(1), "model.safetensors")
        self.named(adapter, str(other))
        sentence = refusal(base, adapter, tmp_path)
        assert str(other) in sentence
        assert "--any-base" in sentence
        self.take(base, adapter, tmp_path, any_base=True)

    def test_a_copy_of_the_base_also_in_float32(self, base, adapter, tmp_path) -> None:
        copy = Path(shutil.copytree(base, tmp_path / "elsewhere"))
        self.take(base, self.named(adapter, str(copy)), tmp_path)

        def widen(tensors: dict[str, torch.Tensor]) -> None:
            tensors.update({name: tensor.float() for name, tensor in tensors.items()})

        rewrite(copy, widen, "model.safetensors")
        self.take(base, adapter, tmp_path)

    @pytest.mark.parametrize("name", ["deepseek-ai/deepseek-coder-6.7b-base", "someone/other", "gpt2"])
    def test_another_hub_name(self, base, adapter, tmp_path, name: str) -> None:
        place = Path(shutil.copytree(base, tmp_path / "deepseek-coder-6.7b-instruct"))
        assert name in refusal(place, self.named(adapter, name), tmp_path)

    @pytest.mark.parametrize(
        "name",
        [
            "DeepSeek-AI/deepseek-coder-6.7b-instruct",
            "DeepSeek-AI/DeepSeek_Coder-6.7B-Instruct-hf",
            "/train/models/other",
            None,
            "",
            "./base",
            "runs/model",
        ],
    )
    def test_the_same_name_or_none(self, base, adapter, tmp_path, name: str | None) -> None:
        place = Path(shutil.copytree(base, tmp_path / "deepseek-coder-6.7b-instruct"))
        self.take(place, self.named(adapter, name), tmp_path)

    @pytest.mark.parametrize(
        ("named", "place", "same"),
        [
            ("org/X-7B", "X-7B-Instruct", False),
            ("org/X-7B-Instruct", "X-7B", False),
            ("org/X-7B-chat-hf", "x-7b-hf", False),
            ("org/X-7B-Base", "x-7b", False),
            ("google/x-7b-it", "x-7b", False),
            ("org/X-7B", "x-17b", False),
            ("org/X-7B-hf", "x-7b-bf16", True),
            ("org/X-7B", "org_X-7B-fp16", True),
            ("meta-llama/Llama-3.1-8B", "Meta-Llama-3.1-8B", True),
            ("meta-llama/Meta-Llama-3.1-8B", "llama-3.1-8b", True),
            ("org/X-7B", "weights", True),
            ("org/X-7B", "bf16", True),
            ("org/X-7B", "checkpoint-500", True),
            ("org/X-7B", "model_fp16", True),
            ("org/X-7B", "7b", True),
        ],
    )
    def test_names_and_versions(self, base, tmp_path, named: str, place: str, same: bool) -> None:
        copy = tmp_path / place
        copy.symlink_to(shutil.copytree(base, tmp_path / "base"))
        assert (disagreement(named, Checkpoint(copy)) is None) == same

    def test_the_name_it_was_tuned_from_is_not_its_own(self, base, tmp_path) -> None:
        copy = Path(shutil.copytree(base, tmp_path / "X-7B-Instruct"))
        configure(copy, "config.json", _name_or_path="org/X-7B")
        assert disagreement("org/X-7B", Checkpoint(copy)) is not None
        assert disagreement("org/X-7B-Instruct", Checkpoint(copy)) is None
        other = Path(shutil.copytree(copy, tmp_path / "for production"))
        assert disagreement("org/X-7B", Checkpoint(other)) is None

    def test_a_base_that_states_its_name_or_lies_in_a_hub_cache(self, base, adapter, tmp_path, capsys) -> None:
        self.named(adapter, "HuggingFaceTB/SmolLM2-135M")
        cached = tmp_path / "models--HuggingFaceTB--SmolLM2-135M" / "snapshots" / ("a" * 40)
        shutil.copytree(base, cached)
        self.take(cached, adapter, tmp_path)
        stated = Path(shutil.copytree(base, tmp_path / "base"))
        self.take(stated, adapter, tmp_path)  # a directory called "base" says nothing
        assert "states no name" in capsys.readouterr().err
        configure(stated, "config.json", _name_or_path="bigcode/starcoder2-3b")
        assert "starcoder2-3b" in refusal(stated, adapter, tmp_path)


def test_sums_that_are_none(base, adapter, tmp_path, make_adapter) -> None:
    dora = make_adapter(base, tmp_path / "dora", use_dora=True, target_modules=["q_proj"])
    assert "Merge it alone" in refusal(base, [adapter, dora], tmp_path)
    assert "Merge it alone" in refusal(base, [dora, dora], tmp_path)
    assert "cannot be weighed" in refusal(base, dora, tmp_path, weight=(0.5,))
    saving = make_adapter(base, tmp_path / "saving", modules_to_save=["lm_head"], target_modules=["q_proj"])
    assert "replaced by several adapters" in refusal(base, [saving, saving], tmp_path)
    assert "lm_head" in refusal(base, saving, tmp_path, weight=(2.0,))
    head = make_adapter(base, tmp_path / "head", target_modules=["lm_head"])
    assert "one adapter replaces it and another changes it" in refusal(base, [saving, head], tmp_path)
    assert "2 times for 1 adapters" in refusal(base, adapter, tmp_path, weight=(1.0, 1.0))
    assert "finite" in refusal(base, adapter, tmp_path, weight=(float("nan"),))


def test_added_tokens_that_do_not_add_up(base, tmp_path, make_adapter) -> None:
    half = make_adapter(base, tmp_path / "half", resize=328, modules_to_save=["embed_tokens", "lm_head"])
    rewrite(half, lambda tensors: [tensors.pop(name) for name in list(tensors) if "lm_head" in name])
    sentence = refusal(base, half, tmp_path)
    assert "328 tokens in model.embed_tokens and 320 in lm_head" in sentence
    tokens = make_adapter(base, tmp_path / "tokens", trainable_token_indices=[3, 4])
    configure(tokens, trainable_token_indices=[3, 330])
    assert "does not hold [320, 321" in refusal(base, tokens, tmp_path)
    configure(tokens, trainable_token_indices=[3])
    assert "names 1 tokens" in refusal(base, tokens, tmp_path)
    configure(tokens, trainable_token_indices=[3, 3])
    assert "occur twice" in refusal(base, tokens, tmp_path)


def test_an_output_that_is_an_input(base, adapter, tmp_path) -> None:
    first = tmp_path / "first"
    merge(base, [adapter], first, MergeOptions())
    before = (first / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="is the input"):
        merge(first, [adapter], tmp_path / "x" / ".." / "first", MergeOptions(), overwrite=True)
    assert (first / "model.safetensors").read_bytes() == before


def test_tokenizers_are_chosen(base, adapter, tmp_path, capsys) -> None:
    assert "takes exactly one" in refusal(base, adapter, tmp_path, tokenizer="adapter")
    (adapter / "tokenizer.json").write_text("{}")
    (adapter / "chat_template.jinja").write_text("new")
    kept = merge(base, [adapter], tmp_path / "kept", MergeOptions())
    assert kept.tokenizer_from == str(base)
    assert "differ from the base's" in capsys.readouterr().err
    assert (tmp_path / "kept/tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    taken = merge(base, [adapter], tmp_path / "taken", MergeOptions(tokenizer="adapter"))
    assert taken.tokenizer_from == str(adapter)
    assert (tmp_path / "taken/chat_template.jinja").read_text() == "new"
    assert not (tmp_path / "taken/tokenizer_config.json").exists()
    assert (tmp_path / "taken/generation_config.json").read_bytes() == (base / "generation_config.json").read_bytes()


def test_gpt2_has_no_nf4_form(tmp_path, make_adapter) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=320, n_positions=64, n_embd=64, n_layer=1, n_head=4)).save_pretrained(
        tmp_path / "gpt2"
    )
    adapter = make_adapter(tmp_path / "gpt2", tmp_path / "adapter", target_modules=["c_attn"], fan_in_fan_out=True)
    assert "no NF4 form" in refusal(tmp_path / "gpt2", adapter, tmp_path, qlora_base="nf4")
