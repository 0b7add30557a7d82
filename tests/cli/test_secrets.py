"""Secrets that are planted in the environment, in options and in files are not in anything that a command writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qtk.redaction import redact

SECRETS = (
    "hf_PlantedPlantedPlanted42",
    "planted-password-42",
    "sk-plantedplantedplanted42",
    "ghp_plantedplantedplanted42",
)
ENVIRONMENT = {
    "HF_TOKEN": SECRETS[0],
    "HTTPS_PROXY": f"http://user:{SECRETS[1]}@127.0.0.1:9",
    "OPENAI_API_KEY": SECRETS[2],
    "GITHUB_TOKEN": SECRETS[3],
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
