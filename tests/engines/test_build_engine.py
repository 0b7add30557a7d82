"""`qtk build-engine --gpu cpu` and `qtk generate` as commands: what they write, and how bad input ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qtk.checkpoint.manifest import read_manifest, verify_chain
from qtk.engines.build import build_engine
from qtk.engines.description import read_description
from qtk.engines.options import BuildOptions
from qtk.errors import InputError
from qtk.quantization.scheme_model import LinearScheme


@pytest.fixture(scope="module")
def int4(tiny, tmp_path_factory, write_quantized) -> Path:
    return write_quantized(tiny(), tmp_path_factory.mktemp("int4") / "int4", "gptq", LinearScheme(4, 32, True))


@pytest.fixture(scope="module")
def engine(int4, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("engine") / "engine"
    build_engine(int4, out, BuildOptions())
    return out


def test_command_writes_a_complete_engine(int4, tmp_path, run_qtk) -> None:
    out = tmp_path / "engine"
    words = ("build-engine", int4, "-o", out, "--gpu", "cpu", "--max-input-len", "100", "--max-output-len", "28")
    done = run_qtk(*words, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    description = read_description(out)
    assert description.model_dump(mode="json", exclude={"windows"}).items() <= said.items()
    assert (description.limits.max_positions, description.quantization.bits, description.accuracy_level) == (128, 4, 4)
    stage = description.stages[0]
    assert [p.name for p in stage.inputs][:2] == ["input_ids", "position_ids"]
    assert stage.outputs[0].shape == ("batch", "wanted", 320)
    assert {"onnx", "onnxruntime"} <= set(description.versions)
    manifest = read_manifest(out)
    assert (manifest.kind, manifest.options["max_input_len"]) == ("engine", 100)
    assert {"model.onnx", "model.onnx.data", "engine.json", "tokenizer.json", "config.json"} <= set(manifest.outputs)
    assert not [finding for finding in verify_chain(out) if finding.bad]
    again = run_qtk(*words)
    assert (again.returncode, "--overwrite" in again.stderr) == (2, True)
    assert run_qtk(*words, "--overwrite").returncode == 0
    assert not list(tmp_path.glob("*.partial"))


def test_default_limits_fit_the_context(tiny, tmp_path) -> None:
    description = build_engine(tiny(), tmp_path / "engine", BuildOptions())
    assert description.limits.max_positions == 512
    assert description.lm_head_bits == 16, "a float model's head stays float"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--gpu", "a10g"], "Did you mean a10"),
        (["--max-input-len", "500", "--max-output-len", "13"], "the model's context is 512"),
        (["--max-batch-size", "0"], "--max-batch-size"),
        (["--backend", "tensorrt"], "does not build for"),
        (["--accuracy-level", "7"], "--accuracy-level"),
    ],
)
def test_impossible_options_write_nothing(int4, tmp_path, run_qtk, words: list[str], sentence: str) -> None:
    done = run_qtk("build-engine", int4, "-o", tmp_path / "engine", *words)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_bad_weights_leave_nothing(tiny, tmp_path, run_qtk) -> None:
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(tiny(), tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"][3, 3] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    done = run_qtk("build-engine", broken, "-o", tmp_path / "engine")
    assert done.returncode == 2
    assert "model.layers.2.mlp.down_proj.weight" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken"]


def test_all_refusals_come_together(tiny, tmp_path, make_tiny) -> None:

    odd = make_tiny(tmp_path / "odd", "llama", hidden_size=80, num_attention_heads=4, num_key_value_heads=2)
    with pytest.raises(InputError, match="blocks of 32, which does not divide the hidden size 80"):
        build_engine(odd, tmp_path / "engine", BuildOptions(lm_head_bits="8"))
    assert not (tmp_path / "engine").exists()


def test_generate_streams_and_reports(engine, run_qtk) -> None:
    streamed = run_qtk("generate", engine, "--prompt", "def f():", "--max-new-tokens", "12")
    assert streamed.returncode == 0, streamed.stderr
    done = run_qtk("generate", engine, "--prompt", "def f():", "--prompt", "x", "--max-new-tokens", "12", "--json")
    result = json.loads(done.stdout)
    assert [row["prompt_tokens"] for row in result["rows"]] == [8, 1]
    assert streamed.stdout == result["rows"][0]["text"] + "\n"
    chat = run_qtk("generate", engine, "--chat-format", "codefuse", "--prompt", "hi", "--max-new-tokens", "3", "--json")
    assert json.loads(chat.stdout)["rows"][0]["prompt_tokens"] == len("<s>human\nhi\n<s>bot\n") - 4


@pytest.mark.parametrize(
    ("directory", "prompt", "sentence"),
    [
        ("int4", "x", "engine.json is missing"),
        ("absent", "x", "is not a directory"),
        ("engine", "x" * 600, "the engine holds 512"),
    ],
)
def test_generate_refuses_what_it_cannot_do(engine, int4, tmp_path, run_qtk, directory, prompt, sentence) -> None:
    place = {"int4": int4, "absent": tmp_path / "absent", "engine": engine}[directory]
    done = run_qtk("generate", place, "--prompt", prompt)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr


def test_the_old_spelling_of_the_chat_format_answers_with_the_new_one(engine, run_qtk) -> None:
    done = run_qtk("generate", engine, "--chat", "codefuse", "--prompt", "hi", "--max-new-tokens", "1")
    assert done.returncode == 0
    assert "qtk: --chat is now --chat-format codefuse." in done.stderr


def test_an_engine_without_its_graph_is_named(engine, tmp_path, run_qtk) -> None:
    damaged = shutil.copytree(engine, tmp_path / "damaged")
    (damaged / "model.onnx").unlink()
    done = run_qtk("generate", damaged, "--prompt", "x")
    assert done.returncode == 2
    assert "model.onnx is missing" in done.stderr


def test_an_engine_with_damaged_weights_is_named(engine, tmp_path, run_qtk) -> None:
    damaged = shutil.copytree(engine, tmp_path / "damaged")
    (damaged / "model.onnx.data").write_bytes(b"short")
    done = run_qtk("generate", damaged, "--prompt", "x")
    assert done.returncode == 2
    assert "model.onnx" in done.stderr
