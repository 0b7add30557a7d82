"""What once gave way, by class: each is refused with a sentence that names what is wrong, in bounded time and memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.conftest import Workshop, edit_json
from safetensors.torch import load_file, save_file
from support.confined import refused

RTN = ("--method", "rtn", "--group-size", "32")


def quantize(w: Workshop, *more: object) -> tuple[object, ...]:
    return "quantize", w.m, "-o", w.out, *RTN, *more


def gptq(w: Workshop, *more: object) -> tuple[object, ...]:
    return "quantize", w.m, "-o", w.out, "--group-size", 32, "--samples", 2, "--seq-len", 16, "--effort", "fast", *more


def merge(w: Workshop) -> tuple[object, ...]:
    return "merge", w.m, w.a, "-o", w.out, "--any-base"


def build(w: Workshop, model: str = "m") -> tuple[object, ...]:
    return "build-engine", w.root / model, "-o", w.out, "--gpu", "cpu", "--max-input-len", 16, "--max-output-len", 16


def generate(w: Workshop, *more: object) -> tuple[object, ...]:
    return "generate", w.e, "--prompt", "def", "--max-new-tokens", 2, *more


def tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Writes a safetensors file anew with its tensors changed."""
    held = load_file(path)
    change(held)
    save_file({name: tensor.contiguous() for name, tensor in held.items()}, path, metadata={"format": "pt"})


def header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Writes a safetensors file anew with its header changed and its data as they are."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    content = json.loads(raw[8 : 8 + length])
    change(content)
    text = json.dumps(content).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


UP = "model.layers.0.mlp.up_proj.weight"
TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], None], str]] = {
    "a bias that a Llama does not have": (
        lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}), "q_proj.bias: unknown"),
    "a norm that a Llama does not have": (
        lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(16)}), "q_norm.weight: unknown"),
    "a block too many": (lambda t: t.update({"model.layers.2.input_layernorm.weight": torch.ones(64)}), "layers.2"),
    "a table of numbers": (lambda t: t.update({UP: t[UP].to(torch.int16)}), "up_proj.weight: stored as int16"),
    "weights of eight bits": (lambda t: t.update({UP: t[UP].to(torch.float8_e4m3fn)}), "stored as float8"),
    "a model of zeros": (lambda t: [x.zero_() for x in t.values()], "zero"),
    "a block of zeros": (lambda t: [x.zero_() for n, x in t.items() if "layers.1" in n and "norm" not in n], "block 1 is zero"),
    "a name of a megabyte": (lambda t: t.update({"x" * 5000: torch.ones(1)}), "the name of a tensor has 5000 letters"),
}  # fmt: skip


_ONE = "a bias that a Llama does not have"


@pytest.mark.parametrize(
    ("command", "case"),
    [
        *((quantize, case) for case in TENSORS),
        (build, _ONE),
        (merge, _ONE),
        (build, "a model of zeros"),
        (merge, "a table of numbers"),
    ],
)
def test_every_tensor_of_a_model_is_used_or_named(broken, confined, command, case: str) -> None:
    change, phrase = TENSORS[case]
    tensors(broken.m / "model.safetensors", change)
    refused(confined.run(*command(broken)), broken.out, phrase)


def test_a_bias_of_zeros_that_nobody_asked_for_is_harmless(broken, confined) -> None:
    zero = {
        "model.layers.0.self_attn.q_proj.bias": torch.zeros(64),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
    }
    tensors(broken.m / "model.safetensors", lambda held: held.update(zero))
    assert confined.run(*quantize(broken)).code == 0


def test_fewer_layers_than_the_file_holds(broken, confined) -> None:
    edit_json(broken.m / "config.json", num_hidden_layers=1)
    refused(confined.run(*quantize(broken)), broken.out, "layers.1.")


@pytest.mark.parametrize("container", ["gptq", "awq", "compressed-tensors", "modelopt"])
@pytest.mark.parametrize("case", ["zero scales", "scales of numbers", "other words"])
def test_quantized_tensors_are_what_they_should_be(broken, confined, container: str, case: str) -> None:
    model = broken.root / f"q-{container}"
    ends = (".scales", "weight_scale") if "scales" in case else (".qweight", ".weight_packed", "up_proj.weight")

    def change(held: dict[str, torch.Tensor]) -> None:
        for name in [name for name in held if "layers.0.mlp.up_proj" in name and name.endswith(ends)]:
            held[name] = held[name] * 0 if case == "zero scales" else held[name].view(torch.int16)
            if case != "zero scales":
                held[name] = held[name].reshape(held[name].shape[0], -1)

    tensors(model / "model.safetensors", change)
    phrase = "every scale of" if case == "zero scales" else "does not hold what its config.json describes"
    refused(confined.run(*build(broken, model.name)), broken.out, phrase)


def test_a_float_block_of_zeros_becomes_no_engine(broken, confined) -> None:
    def change(held: dict[str, torch.Tensor]) -> None:
        for name in [name for name in held if name.startswith("model.layers.1.") and "norm" not in name]:
            held[name] = held[name] * 0

    tensors(broken.m / "model.safetensors", change)
    refused(confined.run(*build(broken)), broken.out, "every weight of block 1 is zero")
    refused(confined.run(*quantize(broken)), broken.out, "every weight of block 1 is zero")


CONFIG: dict[str, tuple[dict[str, Any], str]] = {
    "a thousand million layers": ({"num_hidden_layers": 10**9}, "no model is that large"),
    "2**70 layers": ({"num_hidden_layers": 2**70}, "no model is that large"),
    "a vocabulary of 2**70": ({"vocab_size": 2**70}, "no model is that large"),
    "a context of 2**70": ({"max_position_embeddings": 2**70}, "no model is that large"),
    "a theta of 10**400": ({"rope_parameters": None, "rope_theta": 10**400}, "rope_theta"),
    "a theta of 1e300": ({"rope_parameters": None, "rope_theta": 1e300}, "rope_theta"),
    "eos of -1": ({"eos_token_id": -1}, "eos_token_id"),
    "eos beyond the vocabulary": ({"eos_token_id": 10**6}, "the vocabulary ends at"),
    "quantized by a list": ({"quantization_config": []}, ""),
    "quantized by a word": ({"quantization_config": "yes"}, "quantized"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIG)
def test_numbers_of_a_config_are_checked_before_they_are_believed(broken, confined, case: str) -> None:
    changes, phrase = CONFIG[case]
    edit_json(broken.m / "config.json", **changes)
    (broken.m / "generation_config.json").unlink()
    outcome = confined.run(*build(broken))
    if not phrase:
        assert outcome.clean, outcome.said
        return
    refused(outcome, broken.out, phrase)
    assert confined.run("plan", broken.m, "--gpu", "a10").clean
    assert confined.run("inspect", broken.m).clean


_PLAN = ("plan", "--gpu", "a10")


@pytest.mark.parametrize(
    ("text", "command"),
    [
        *(
            (text, _PLAN)
            for text in ("[]", "[" * 100_000, '{"a":' * 20_000, "null", '{"vocab_size": 1, "vocab_size": 2}', "{")
        ),
        ("[]", ("inspect",)),
        ("[" * 100_000, ("quantize", "-o", "OUT")),
    ],
)
def test_a_config_that_is_none(broken, confined, text: str, command: tuple[str, ...]) -> None:
    (broken.m / "config.json").write_text(text)
    words = [broken.out if word == "OUT" else word for word in command]
    outcome = confined.run(words[0], broken.m, *words[1:])
    assert outcome.clean, outcome.said
    assert outcome.code == 2


QUANTIZATION = {
    "gptq": [{"bits": "four"}, {"group_size": None}, {"dynamic": []}, {"dynamic": {"+:(": {}}}, {"dynamic": {"+:(a+)+$": {}}},
             {"meta": 5}, {"bits": 2**70}, {"group_size": -7}, {"dynamic": {"-:x": 5}}, {"desc_act": "no"}],
    "awq": [{"bits": [4]}, {"group_size": "x"}, {"modules_to_not_convert": 5}, {"zero_point": {}}, {"version": []}],
    "compressed-tensors": [{"config_groups": []}, {"config_groups": {"a": 5}}, {"config_groups": {"a": {"weights": None, "targets": "x"}}},
                           {"ignore": 5}, {"ignore": ["re:(a+)+$"]}, {"format": 7}],
    "modelopt": [{"quantization": 5}, {"exclude_modules": 5}, {"kv_cache_quant_algo": []}, {"group_size": "x"}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("container", "change"), [(name, it) for name, changes in QUANTIZATION.items() for it in changes]
)
def test_a_quantization_config_of_other_types(broken, confined, container: str, change: dict[str, Any]) -> None:
    path = broken.root / f"q-{container}" / "config.json"
    config = json.loads(path.read_text())
    edit_json(path, quantization_config={**config["quantization_config"], **change})
    outcome = confined.run(*build(broken, f"q-{container}"))
    assert outcome.clean, outcome.said
    assert outcome.seconds < 15


ADAPTER: list[tuple[dict[str, Any], str]] = [
    ({"modules_to_save": ["lm_head"]}, "lm_head"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"target_modules": "(.*.*)*(.*.*)*(.*.*)*x"}, "takes more than a second"),
    ({"target_modules": "("}, "is not a regular expression"),
    ({"exclude_modules": "(.*.*)*(.*.*)*(.*.*)*x"}, "takes more than a second"),
    ({"rank_pattern": {"(.*.*)*(.*.*)*(.*.*)*x": 2}}, "takes more than a second"),
    ({"alpha_pattern": {"(.*.*)*(.*.*)*(.*.*)*x": 2}}, "takes more than a second"),
    ({"layers_pattern": "(.*.*)*(.*.*)*(.*.*)*x", "layers_to_transform": [0]}, "takes more than a second"),
    ({"modules_to_save": ["(.*.*)*(.*.*)*(.*.*)*x"]}, "takes more than a second"),
    ({"r": 2**70}, ""), ({"lora_alpha": 1e999}, "lora_alpha"), ({"r": 0}, "r"), ({"rank_pattern": []}, "rank_pattern"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "phrase"), ADAPTER)
def test_what_an_adapter_says_is_checked(broken, confined, change: dict[str, Any], phrase: str) -> None:
    edit_json(broken.a / "adapter_config.json", **change)
    outcome = confined.run(*merge(broken))
    refused(outcome, broken.out, phrase)
    assert outcome.seconds < 15


def test_factors_of_whole_numbers_are_not_merged(broken, confined) -> None:
    def change(held: dict[str, torch.Tensor]) -> None:
        name = next(name for name in held if "lora_B" in name)
        held[name] = held[name].float().view(torch.int32)

    tensors(broken.a / "adapter_model.safetensors", change)
    refused(confined.run(*merge(broken)), broken.out, "lora_B")


TEMPLATES = {
    "text": "{{ 'A' * 10**9 }}",
    "indent": "{{ messages | tojson(indent=10**9) }}",
    "lipsum": "{{ lipsum(n=10**6) }}",
    "braces": "{" * 200_000,
    "deep": "{{ " + "(" * 5000,
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_a_chat_template_is_a_program_with_limits(broken, confined, case: str) -> None:
    (broken.m / "chat_template.jinja").write_text(TEMPLATES[case])
    outcome = confined.run(*gptq(broken, "--calibration", broken.root / "chats.jsonl", "--chat-format", "model"))
    refused(outcome, broken.out, "the chat template")
    assert outcome.seconds < 15


@pytest.mark.parametrize("case", ["doubles", "backtracks", "specials", "post"])
def test_a_tokenizer_s_rules_have_limits(broken, confined, case: str) -> None:
    path = broken.m / "tokenizer.json"
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    if case == "doubles":
        edit_json(path, normalizer={"type": "Sequence", "normalizers": [double] * 34})
    elif case == "backtracks":
        edit_json(path, normalizer={"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": ""})
        (broken.root / "text.txt").write_text("x" * 3000)
    else:
        count = 16 if case == "specials" else 100
        special = [{"SpecialToken": {"id": "<s>", "type_id": 0}}] * count
        tokens = {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}
        single = [*special, {"Sequence": {"id": "A", "type_id": 0}}]
        pair = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
        edit_json(
            path,
            post_processor={"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens},
        )
    outcome = confined.run(*gptq(broken, "--calibration", broken.root / "text.txt"))
    refused(outcome, broken.out, "tokenizer")
    assert outcome.seconds < 15


def test_one_long_line_is_tokenized_until_there_is_enough(broken, confined) -> None:
    (broken.root / "text.txt").write_text("one two three " * 400_000)
    outcome = confined.run(*gptq(broken, "--calibration", broken.root / "text.txt"), megabytes=600)
    assert outcome.code == 0, outcome.said


OPTIONS = [
    lambda w: gptq(w, "--samples", 10**12), lambda w: gptq(w, "--seq-len", 5 * 10**8), lambda w: gptq(w, "--seed", 2**80),
    lambda w: ("build-engine", w.m, "-o", w.out, "--max-input-len", 10**8), lambda w: (*merge(w), "--shard-gb", "inf"),
    lambda w: (*merge(w), "--shard-gb", "nan"), lambda w: (*merge(w), "--weight", "inf"), lambda w: gptq(w, "--threads", 10**9),
    lambda w: ("bench", "divergence", w.m, "--reference", w.m, "-o", w.out, "--rows", 10**9),
    lambda w: ("bench", "divergence", w.m, "--reference", w.m, "-o", w.out, "--seq-len", 10**9),
    lambda w: ("generate", w.e, "--prompt", "a\udc80b"), lambda w: ("generate", w.e, "--prompt", "a\ud800"),
    lambda w: ("quantize", w.m, "-o", w.root / "o\udcff", *RTN),
]  # fmt: skip


@pytest.mark.parametrize("words", OPTIONS)
def test_options_are_checked_before_they_are_believed(broken, confined, words) -> None:
    outcome = confined.run(*words(broken))
    refused(outcome, broken.out)
    assert outcome.seconds < 10


ENGINE: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (lambda d: d.update(windows=[4, 4]), "was changed since the engine was built"),
    (lambda d: d.update(stages=[]), "a stage at least"),
    (lambda d: d.update(num_layers=10**9), "num_layers"),
    (lambda d: d.update(windows=[None]), "windows are given for 1 of 2 layers"),
    (lambda d: d["stages"][0].update(file="/etc/passwd"), "'/etc/passwd', which does not lie inside"),
    (lambda d: d["stages"][0].update(file="../e/model.onnx"), "does not lie inside"),
    (lambda d: d["limits"].update(max_batch=2**70), "max_batch"),
    (lambda d: d.update(vocab_size="many"), "vocab_size"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "phrase"), ENGINE)
def test_what_describes_an_engine_is_checked(
    broken, confined, change: Callable[[dict[str, Any]], None], phrase: str
) -> None:
    path = broken.e / "engine.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    refused(confined.run(*generate(broken)), broken.out, phrase)


def _manifest(w: Workshop, change: Callable[[dict[str, Any]], None]) -> None:
    path = w.e / "qtk-manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _digest(path: str) -> dict[str, Any]:
    content = Path(path).read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


MANIFESTS: list[Callable[[dict[str, Any]], None]] = [
    lambda m: m["outputs"].update({"/etc/hostname": _digest("/etc/hostname")}),
    lambda m: m["outputs"].update({"../m/config.json": {"sha256": "0" * 64, "bytes": 1}}),
    lambda m: m["inputs"][0]["files"].update({"../../x": "0" * 64}),
    lambda m: m.update(outputs=[]), lambda m: m.update(machine=5), lambda m: m.update(inputs={"a": 1}),
]  # fmt: skip


@pytest.mark.parametrize("change", MANIFESTS)
def test_a_manifest_that_lies_is_a_finding(broken, confined, change: Callable[[dict[str, Any]], None]) -> None:
    _manifest(broken, change)
    outcome = confined.run("verify", broken.e)
    assert outcome.clean, outcome.said
    assert outcome.code == 3
    assert "pydantic" not in outcome.said


def test_a_broken_byte_in_a_manifest_hides_no_other_finding(broken, confined) -> None:
    (broken.e / "qtk-manifest.json").write_bytes(b"\xff" + (broken.e / "qtk-manifest.json").read_bytes()[1:])
    outcome = confined.run("verify", broken.root / "e")
    assert outcome.code == 3, outcome.said
    assert "changed: " in outcome.said
    assert "qtk-manifest.json" in outcome.said


def test_a_device_as_an_input_hangs_nothing(broken, confined) -> None:
    _manifest(broken, lambda m: m["inputs"][0].update(path="/dev", files={"zero": "0" * 64}, manifest_sha256=None))
    outcome = confined.run("verify", broken.e)
    assert outcome.code == 3, outcome.said
    assert "zero" in outcome.said


def test_what_qtk_did_not_write_is_unrecorded(broken, confined) -> None:
    (broken.e / "link").symlink_to("/etc")
    (broken.e / "nowhere").symlink_to("/nowhere")
    os.mkfifo(broken.e / "pipe")
    (broken.e / "empty").mkdir()
    outcome = confined.run("verify", broken.e)
    assert outcome.code == 3
    for name in ("link", "nowhere", "pipe", "empty"):
        assert f"unrecorded: {broken.e / name}" in outcome.said


def test_a_long_chain_of_manifests_is_walked(broken, confined) -> None:
    content = json.loads((broken.e / "qtk-manifest.json").read_text())
    for number in range(1200):
        place = broken.root / "chain" / str(number)
        place.mkdir(parents=True)
        record = {"role": "x", "path": f"../{number + 1}", "files": {}, "manifest_sha256": "0" * 64}
        (place / "qtk-manifest.json").write_text(json.dumps({**content, "outputs": {}, "inputs": [record]}))
    outcome = confined.run("verify", broken.root / "chain" / "0")
    assert outcome.clean, outcome.said
    assert outcome.code == 3


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/urandom"])
def test_a_device_as_a_file_of_settings(broken, confined, path: str) -> None:
    (broken.root / "recipe.yaml").unlink()
    (broken.root / "recipe.yaml").symlink_to(path)
    refused(
        confined.run("run", broken.root / "recipe.yaml", "-o", broken.out), broken.out, "neither a file nor a directory"
    )
    (broken.m / "config.json").unlink()
    (broken.m / "config.json").symlink_to(path)
    refused(confined.run(*quantize(broken)), broken.out, "config.json cannot be read")


def test_a_header_of_a_million_tensors_takes_little_memory(broken, confined) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    text = json.dumps({f"t{n}": entry for n in range(600_000)}).encode()
    (broken.m / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    refused(confined.run(*quantize(broken)), broken.out, "model.safetensors")


def test_escape_sequences_of_a_file_do_not_reach_the_terminal(broken, confined) -> None:
    tensors(broken.m / "model.safetensors", lambda held: held.update({"model.\x1b[31mred\x07": torch.ones(1)}))
    outcome = confined.run(*quantize(broken))
    refused(outcome, broken.out, "red")
    assert "\x1b" not in outcome.said
    assert "\x07" not in outcome.said
