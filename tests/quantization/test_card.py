"""The model card: what the hub reads of it, what of the base is carried, and that nothing of this machine stands in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from qtk.checkpoint.manifest import MANIFEST_NAME

CARD = "---\nlicense: mit\nlanguage: [en]\nbase_model: acme/tiny\ntags: [mine]\n---\n# Tiny\n\nBy Acme.\n"


@pytest.fixture
def base(tiny, tmp_path) -> Path:
    """A model that lies under an absolute path, with a card and a licence."""
    place = tmp_path / "home" / "models" / "base"
    shutil.copytree(tiny("llama"), place)
    (place / "README.md").write_text(CARD)
    (place / "LICENSE").write_text("MIT")
    return place


def front_matter(directory: Path) -> dict:
    text = (directory / "README.md").read_text()
    return yaml.safe_load(text.split("---\n")[1])


def quantize(run_qtk, base: Path, out: Path, *more: object, cwd: Path | None = None):
    words = ["quantize", base, "-o", out, "--samples", 8, "--seq-len", 64, "--effort", "fast", "--group-size", 64]
    answer = run_qtk(*words, *more, cwd=cwd)
    assert answer.returncode == 0, answer.stderr
    return answer


def test_the_card_says_what_the_hub_asks_for(base, run_qtk, tmp_path) -> None:
    answer = quantize(run_qtk, base, tmp_path / "out")
    assert front_matter(tmp_path / "out") == {
        "base_model": "acme/tiny",
        "base_model_relation": "quantized",
        "license": "mit",
        "language": ["en"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["qtk", "int4", "w4a16", "gptq"],
    }
    card = (tmp_path / "out" / "README.md").read_text()
    assert "vllm serve out" in card
    assert "| calibration | python-stdlib: 8 rows, " in card
    assert (tmp_path / "out" / "README-base.md").read_text() == CARD
    assert (tmp_path / "out" / "LICENSE").read_text() == "MIT"
    assert f"Serve it: vllm serve {tmp_path / 'out'}" in answer.stdout.splitlines()[-2:]
    (tmp_path / "out" / "README.md").write_text(card + "KL 0.07\n")
    assert run_qtk("verify", tmp_path / "out").returncode == 0, "the card is there to be edited"


@pytest.mark.parametrize(
    ("container", "line", "transformers"),
    [
        ("compressed-tensors", "vllm serve out", "where compressed-tensors is installed"),
        ("awq", "vllm serve out", "where gptqmodel is installed"),
        (
            "modelopt",
            "qtk build-engine out -o out-engine --gpu GPU --backend tensorrt-llm",
            "transformers does not load this",
        ),
    ],
)
def test_the_line_that_serves_each_container(base, run_qtk, tmp_path, container, line, transformers) -> None:
    quantize(run_qtk, base, tmp_path / "out", "--method", "rtn", "--container", container)
    card = (tmp_path / "out" / "README.md").read_text()
    assert line in card
    assert transformers in card


def test_a_model_without_a_card_gets_one_that_claims_nothing(tiny, run_qtk, tmp_path) -> None:
    quantize(run_qtk, tiny("llama"), tmp_path / "out", "--method", "rtn")
    assert {"license", "base_model", "base_model_relation"}.isdisjoint(front_matter(tmp_path / "out"))
    assert not (tmp_path / "out" / "README-base.md").exists()


def test_no_file_that_is_published_names_a_place_of_this_machine(base, run_qtk, tmp_path, monkeypatch) -> None:
    """Neither where the user's home is named in full nor where the working directory is."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "text.jsonl").write_text(json.dumps({"text": "x = 1\n" * 400}) + "\n")
    (tmp_path / "work").mkdir()
    quantize(
        run_qtk,
        base,
        tmp_path / "work" / "out",
        "--calibration",
        tmp_path / "home" / "text.jsonl",
        cwd=tmp_path / "work",
    )
    text = "".join((tmp_path / "work" / "out" / name).read_text() for name in (MANIFEST_NAME, "README.md"))
    assert str(tmp_path) not in text
    manifest = json.loads((tmp_path / "work" / "out" / MANIFEST_NAME).read_text())
    assert manifest["options"]["calibration"] == "~/text.jsonl"
    assert manifest["inputs"][0]["path"] == "~/models/base"
    assert run_qtk("verify", tmp_path / "work" / "out", "--json").stdout.count("input absent") == 0


def test_a_merged_model_hands_the_base_s_card_on(base, make_adapter, run_qtk, tmp_path) -> None:
    adapter = make_adapter(base, tmp_path / "adapter")
    merged = run_qtk("merge", base, adapter, "-o", tmp_path / "merged")
    assert merged.returncode == 0, merged.stderr
    assert front_matter(tmp_path / "merged")["base_model_relation"] == "merge"
    assert "lora, rank 8" in (tmp_path / "merged" / "README.md").read_text().lower()
    quantize(run_qtk, tmp_path / "merged", tmp_path / "out", "--method", "rtn")
    front = front_matter(tmp_path / "out")
    assert (front["base_model"], front["base_model_relation"], front["license"]) == ("acme/tiny", "quantized", "mit")
    assert (tmp_path / "out" / "README-base.md").read_text() == CARD
    assert "merged in by qtk" in (tmp_path / "out" / "README-merge.md").read_text()
