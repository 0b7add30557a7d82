"""Hub ids wherever a command takes a model, through the real client: what is fetched, what is recorded, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.hub import COMMIT, use_hub

from qtk.checkpoint.hub import model_directory
from qtk.checkpoint.hub_cache import cached_directory, hub_identity
from qtk.checkpoint.manifest import read_manifest
from qtk.errors import InputError, MachineError


@pytest.fixture
def published(stand_in_hub, tiny, tmp_path):
    """A hub with tiny/llama: a model with everything beside it that people put into a repository."""
    place = tmp_path / "repository"
    shutil.copytree(tiny("llama"), place)
    (place / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    (place / "LICENSE").write_text("MIT")
    (place / "pytorch_model.bin").write_bytes(b"pickle")
    (place / "modeling_tiny.py").write_text("raise SystemExit")
    (place / "consolidated.safetensors").write_bytes(b"the same weights once more")
    (place / "onnx").mkdir()
    (place / "onnx" / "model.safetensors").write_bytes(b"another form")
    stand_in_hub.models["tiny/llama"] = place
    return stand_in_hub


def names(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def test_only_what_is_needed_is_fetched(published, capfd) -> None:
    directory = model_directory("tiny/llama")
    assert hub_identity(directory) == f"tiny/llama@{COMMIT}"
    assert cached_directory(f"tiny/llama@{COMMIT}") == directory
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert names(directory) == wanted | {"generation_config.json", "LICENSE", "README.md"}
    assert "Fetching tiny/llama at 0123456789ab" in capfd.readouterr().err
    assert model_directory(f"tiny/llama@{COMMIT}") == model_directory("tiny/llama@v1") == directory


def test_the_shards_that_the_index_names(stand_in_hub, make_tiny, tmp_path) -> None:
    stand_in_hub.models["tiny/shards"] = make_tiny(tmp_path / "shards", "llama", shard_size="200KB")
    (tmp_path / "shards" / "consolidated.safetensors").touch()
    fetched = names(model_directory("tiny/shards"))
    assert fetched == names(tmp_path / "shards") - {"consolidated.safetensors"}


def test_a_local_directory_wins_and_a_slip_in_a_path_stays_local(published, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_directory("tiny/llamas.d/x") == Path("tiny/llamas.d/x")
    (tmp_path / "tiny" / "llama").mkdir(parents=True)
    assert model_directory("tiny/llama") == Path("tiny/llama")
    assert model_directory("tiny/other") == Path("tiny/other"), "beside an existing tiny/ it is a path"
    assert published.asked == []


def test_quantize_records_the_commit_and_no_place_of_this_machine(published, run_qtk, tmp_path, monkeypatch) -> None:
    words = ["quantize", "tiny/llama", "-o", tmp_path / "q", "--method", "rtn", "--group-size", 32]
    answer = run_qtk(*words)
    assert answer.returncode == 0, answer.stderr
    [model] = read_manifest(tmp_path / "q").inputs
    assert model.path == f"hf://tiny/llama@{COMMIT}"
    verified = run_qtk("verify", tmp_path / "q", "--json")
    assert verified.returncode == 0, verified.stdout
    assert "input absent" not in verified.stdout
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "another machine's cache")
    elsewhere = run_qtk("verify", tmp_path / "q", "--json")
    assert elsewhere.returncode == 0
    assert "input absent" in elsewhere.stdout


def test_merge_takes_ids_for_base_and_adapter(published, make_adapter, run_qtk, tmp_path) -> None:
    published.models["tiny/adapter"] = make_adapter(published.models["tiny/llama"], tmp_path / "adapter")
    answer = run_qtk("merge", "tiny/llama", "tiny/adapter", "-o", tmp_path / "merged", "--any-base")
    assert answer.returncode == 0, answer.stderr
    recorded = [record.path for record in read_manifest(tmp_path / "merged").inputs]
    assert recorded == [f"hf://tiny/llama@{COMMIT}", f"hf://tiny/adapter@{COMMIT}"]


def test_plan_fetches_the_config_alone_and_divergence_takes_ids(published, run_qtk) -> None:
    assert run_qtk("plan", "tiny/llama", "--gpu", "a10").returncode in (0, 3)
    assert not any("safetensors" in path for path in published.asked)
    answer = run_qtk(
        "bench", "divergence", "tiny/llama", "--reference", "tiny/llama", "--rows", 2, "--seq-len", 16, "--json"
    )
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["pooled"]["kl"]["mean"] == 0


@pytest.mark.parametrize(
    ("hub_id", "complaint"),
    [
        ("nobody/nothing", r"does not show a model of that name.*hf auth login"),
        ("tiny/gated", r"is gated: accept its terms.*hf auth login"),
        ("tiny/llama@v9", "has no revision 'v9'"),
        ("tiny/pickles", "only pickles"),
        ("tiny/data", "does not hold config.json"),
    ],
)
def test_what_the_hub_does_not_give_is_a_sentence(published, tmp_path, hub_id: str, complaint: str) -> None:
    published.gated.add("tiny/gated")
    for name, file in (("pickles", "pytorch_model.bin"), ("data", "rows.parquet")):
        place = published.models[f"tiny/{name}"] = tmp_path / name
        place.mkdir()
        (place / file).touch()
    (tmp_path / "pickles" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=complaint):
        model_directory(hub_id)


def test_without_a_network_the_exit_code_is_4_and_the_cache_still_serves(
    published, run_qtk, tmp_path, monkeypatch, capfd
) -> None:
    fetched = model_directory("tiny/llama")
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "hub-cache")
    answer = run_qtk("quantize", "tiny/absent", "-o", tmp_path / "q")
    assert answer.returncode == 4
    assert len(answer.stderr.splitlines()) == 1
    assert "the hub cannot be asked for it" in answer.stderr
    assert "hf_" not in answer.stderr
    assert capfd.readouterr().err.count("Retrying") == 0
    assert model_directory("tiny/llama") == fetched
    assert "read from its cache" in capfd.readouterr().err


def test_offline_mode_is_the_machines_lack(published, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MachineError, match="cannot be asked"):
        model_directory("tiny/llama")
