"""qtk quantize --gpu and --backend: the target decides what is left at auto, and refuses before any work."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from qtk.checkpoint.manifest import read_manifest
from qtk.errors import InputError
from qtk.models.llama import spec as llama_spec
from qtk.quantization.formats.gptq import GptqFormat
from qtk.quantization.formats.registry import FORMATS, checkpoint_format
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.options import QuantizeOptions
from qtk.quantization.scheme import resolve_scheme
from qtk.quantization.target_settings import for_target, settled_scheme, target_refusals
from qtk.targets.runtimes import RUNTIMES

SIZES = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 2,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 320,
}


# What containers ask of a checkpoint is no matter of targets, so none of them is asked.
NO_CHECKPOINT = SimpleNamespace(path="MODEL")


@pytest.fixture(autouse=True)
def _no_checkpoint_refusals(monkeypatch):
    for container in FORMATS.values():
        monkeypatch.setattr(type(container), "checkpoint_refusals", lambda self, checkpoint: [])


def settle(**options) -> QuantizeOptions:
    spec = llama_spec(SIZES)
    chosen = for_target(QuantizeOptions(**options), spec)
    settled_scheme(NO_CHECKPOINT, spec, chosen, checkpoint_format(chosen.container))
    return chosen


def test_without_a_target_the_container_is_gptq() -> None:
    assert settle().container == "gptq"
    assert settle().group_size == "auto"
    assert settle(container="awq").container == "awq"


def test_the_container_of_older_recipes_and_manifests_is_called_format() -> None:
    assert QuantizeOptions(format="awq") == QuantizeOptions(container="awq")


@pytest.mark.parametrize(
    ("gpu", "backend", "container", "group_size"),
    [
        ("a10", "auto", "gptq", 64),
        ("a10", "tensorrt-llm", "modelopt", 64),
        ("a10", "tensorrt-edgellm", "modelopt", 64),
        ("a10", "vllm", "gptq", 64),
        ("a10", "tensorrt-full", "gptq", 64),
        ("cpu", "auto", "gptq", 64),
        (None, "llama.cpp", "gguf", 64),
        (None, "onnxruntime-genai", "gptq", 64),
    ],
)
def test_the_target_decides(gpu: str | None, backend: str, container: str, group_size: int) -> None:
    chosen = settle(gpu=gpu, backend=backend)
    assert (chosen.container, chosen.group_size) == (container, group_size)
    assert chosen.signed_scales == (backend != "tensorrt-full")


def test_every_container_of_the_table_is_one_that_qtk_writes() -> None:
    assert {name for row in RUNTIMES.values() for name in row.containers} <= set(FORMATS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gpu": "a10", "sym": False}, ["symmetric weights only", "--sym", "(14 linears)"]),
        ({"gpu": "a10", "bits": 8}, ["does not take 8-bit weights"]),
        ({"gpu": "a10", "backend": "tensorrt-llm", "group_size": 32}, ["not 32", "--group-size 64"]),
        ({"gpu": "a10", "backend": "tensorrt-llm", "container": "compressed-tensors", "group_size": 32}, ["not 32"]),
        ({"gpu": "rtx5090", "backend": "tensorrt-llm"}, ["SM120", "tensorrt-edgellm"]),
        ({"backend": "onnxruntime-genai", "container": "compressed-tensors"}, ["--container gptq"]),
        ({"gpu": "a11"}, ["a10"]),
        ({"backend": "tensorflow"}, ["tensorrt-llm"]),
    ],
)
def test_what_the_target_cannot_run_is_refused(options: dict, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        settle(**options)
    for word in words:
        assert word in str(caught.value)


def test_an_8_bit_head_is_refused_where_build_engine_would() -> None:
    untied = llama_spec({**SIZES, "tie_word_embeddings": False})
    for gpu, refused in (("a10", True), ("cpu", False)):
        chosen = for_target(QuantizeOptions(gpu=gpu, lm_head_bits="8"), untied)
        scheme = resolve_scheme(untied, chosen)
        reasons = "\n".join(target_refusals(chosen, untied, scheme))
        assert ("does not take 8-bit weights: lm_head" in reasons) is refused


def test_reasons_of_container_groups_and_target_come_together(monkeypatch) -> None:
    """And the group that is advised is one that the target takes, though a smaller one would do for the container."""
    monkeypatch.setattr(GptqFormat, "checkpoint_refusals", lambda self, checkpoint: ["the checkpoint is odd"])
    spec = llama_spec({**SIZES, "num_hidden_layers": 30})
    options = QuantizeOptions(gpu="a10", backend="tensorrt-llm", container="gptq", group_size=128, sym=False)
    with pytest.raises(InputError) as caught:
        settled_scheme(NO_CHECKPOINT, spec, options, checkpoint_format("gptq"))
    text = str(caught.value)
    assert text.count("576 inputs, group 128") == 6, "one line for the thirty layers"
    assert text.index("--group-size 64 divides them all") < text.index("576 inputs"), "the mend comes first"
    for words in (
        "the checkpoint is odd",
        "--group-size 64 divides them all",
        "symmetric weights only",
        "(210 linears)",
    ):
        assert words in text


@pytest.mark.parametrize(("override", "words"), [("*=bits:4", "matches lm_head too"), ("*_proj=bits:4", "")])
def test_a_pattern_that_catches_the_head_is_pointed_out(capfd, override: str, words: str) -> None:
    resolve_scheme(llama_spec({**SIZES, "tie_word_embeddings": False}), QuantizeOptions(override=(override,)))
    err = capfd.readouterr().err
    assert words in err
    assert bool(err) is bool(words)


def test_skip_is_16_bits_and_something_must_be_left_to_quantize() -> None:
    spec = llama_spec(SIZES)
    scheme = resolve_scheme(spec, QuantizeOptions(override=("*.down_proj=skip",)))
    assert scheme.modules["model.layers.0.mlp.down_proj"].bits == 16
    with pytest.raises(InputError, match="nothing to quantize"):
        resolve_scheme(spec, QuantizeOptions(override=("*=skip",)))


def test_the_command_writes_what_the_target_reads(run_qtk, tmp_path, make_tiny, write_byte_tokenizer) -> None:
    source = make_tiny(tmp_path / "float", "llama", num_hidden_layers=1)
    write_byte_tokenizer(source)
    words = ["quantize", source, "-o", tmp_path / "out", "--method", "rtn", "--gpu", "a10"]
    done = run_qtk(*words, "--backend", "tensorrt-llm", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["format"] == "modelopt"
    assert json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())["quantization"]["group_size"] == 128
    weights = ModelWeights.open(tmp_path / "out")
    assert weights.format is FORMATS["modelopt"]
    assert read_manifest(tmp_path / "out").options["gpu"] == "a10"
    done = run_qtk("quantize", source, "-o", tmp_path / "no", "--method", "rtn", "--gpu", "a10", "--asym")
    assert done.returncode == 2
    assert "symmetric weights only" in done.stderr
    assert not (tmp_path / "no").exists()
