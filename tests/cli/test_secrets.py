"""Secrets that are planted in the environment, in options and in files are not in anything that a command writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from qtk.redaction import redact

SECRETS = (
    "hf_PlantedPlantedPlanted42",
    "planted-password-42",
    "sk-plantedplantedplanted42",
    "ghp_plantedplantedplanted42",
    "no-usual-form-but-planted",
    "planted%2Fproxy%2Fpassword",
    "planted/proxy/password",
)
ENVIRONMENT = {
    "HF_TOKEN": SECRETS[0],
    "HTTPS_PROXY": f"http://user:{SECRETS[1]}@127.0.0.1:9",
    "OPENAI_API_KEY": SECRETS[2],
    "GITHUB_TOKEN": SECRETS[3],
    "MODELSCOPE_API_TOKEN": SECRETS[4],
    "all_proxy": f"http://user:{SECRETS[5]}@127.0.0.1:9",
}
URL = f"https://user:{SECRETS[1]}@models.example/model?token={SECRETS[2]}"


def assert_nowhere(folder: Path, *texts: str) -> None:
    written = [path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()]
    for text in (*texts, *written):
        for secret in SECRETS:
            assert secret not in text


def suite(folder: Path) -> Path:
    row = {
        "task_id": "Own/0", "prompt": "def f(x):\n", "entry_point": "f", "canonical_solution": "    return x\n",
        "test": "def check(candidate):\n    assert candidate(1) == 1\n",
    }  # fmt: skip
    (folder / "own.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "answers.jsonl").write_text(
        json.dumps({"task_id": "Own/0", "completion": "    import os\n    print(dict(os.environ))\n    return 2\n"})
    )
    (folder / "own.yaml").write_text(
        f"name: own\nsummary: ours\nsource: {redact(URL)}\nlicence: Apache-2.0\nlayout: humaneval\n"
        "languages:\n  python: {file: own.jsonl, tasks: 1}\nseconds: 3\n"
    )
    return folder / "own.yaml"


def test_nothing_of_the_environment_reaches_a_program_or_a_result(tmp_path, run_qtk):
    words = ("--suite", suite(tmp_path), "--data", tmp_path, "--generations", tmp_path / "answers.jsonl")
    done = run_qtk("bench", "accuracy", *words, "-o", tmp_path / "out", "--json", env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    report = run_qtk("report", tmp_path, "-o", tmp_path / "report", env=ENVIRONMENT)
    assert_nowhere(tmp_path, done.stdout, done.stderr, report.stdout, report.stderr)


def run_of_planted(folder: Path, tiny, run_qtk) -> Path:
    """A run of a base whose card, config and recipe hold secrets, in an environment that holds others."""
    base = shutil.copytree(tiny(), folder / "base")
    card = f"---\nlicense: other\nlicense_link: {URL}\nbase_model: tiny/origin\n---\nAsk with {SECRETS[0]}, or {SECRETS[4]}.\n"
    (base / "README.md").write_text(card)
    (base / "LICENSE").write_text(f"Ours. {URL}\n")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "_name_or_path": URL, "note": f"token={SECRETS[2]}"}))
    recipe = {
        "name": "tiny",
        "model": "base",
        "quantize": {"group_size": 32, "method": "rtn"},
        "gates": [{"metric": "size", "at_most": 5}],
    }
    (folder / "recipe.yaml").write_text(f"# {URL}\n{yaml.safe_dump(recipe)}")
    done = run_qtk("run", folder / "recipe.yaml", "-o", folder / "run", env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert_nowhere(folder / "run", done.stdout, done.stderr)
    with open(folder / "run" / "recipe.yaml", "a") as stream:
        stream.write(f"# {SECRETS[4]} {URL}\n")
    return folder / "run"


def test_no_secret_comes_into_a_bundle(tmp_path, tiny, run_qtk):
    run, made = run_of_planted(tmp_path, tiny, run_qtk), tmp_path / "made"
    done = run_qtk("bundle", run, "-o", made, "--json", env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    texts = [done.stdout, done.stderr]
    for words in (("verify", made), ("inspect", made), ("publish", made, f"file://{tmp_path / 'share'}", "--yes")):
        done = run_qtk(*words, env=ENVIRONMENT)
        assert done.returncode == 0, (words, done.stderr)
        texts += [done.stdout, done.stderr]
    assert_nowhere(made, *texts)
    assert_nowhere(tmp_path / "share")
    names = {path.name for path in made.rglob("*") if path.is_file()}
    assert {
        "README.md",
        "README-base.md",
        "LICENSE",
        "recipe.yaml",
        "config.json",
        "sbom.cdx.json",
        "report.html",
    } <= names
    assert "***" in (made / "README-base.md").read_text()


@pytest.mark.parametrize("more", [(), ("--debug",), ("--json",)])
@pytest.mark.parametrize("words", [("merge", URL, "-o", "out"), ("bench", "accuracy", URL, "-o", "out"), ("plan", URL)])
def test_no_error_repeats_a_password(tmp_path, run_qtk, words, more):
    named = [str(tmp_path / word) if word == "out" else word for word in words]
    done = run_qtk(*named, *more, env=ENVIRONMENT)
    assert done.returncode != 0
    assert_nowhere(tmp_path, done.stdout, done.stderr)


@pytest.mark.parametrize("text", ["skip-this-and-that-and-more", "hf://org/name@0123456789abcdef", "sk_learn", "a=b"])
def test_what_is_not_secret_stays(text):
    assert redact(text) == text
