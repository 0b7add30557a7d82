"""What is published names no place of the machine it was written on."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtk.checkpoint.publishing import found_path, publishable, recorded_path


@pytest.fixture
def places(tmp_path, monkeypatch) -> Path:
    """A home directory, and a working directory outside of it."""
    for name in ("home/models/base", "here/out", "data"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("{0}/home/models/base", "~/models/base"),
        ("{0}/here/out", "out"),
        ("{0}/data/rows.jsonl", "../data/rows.jsonl"),
        ("--calibration={0}/home/rows.txt", "--calibration=~/rows.txt"),
        ("{0}/home/rows.txt is too little: asked for 2", "~/rows.txt is too little: asked for 2"),
        ("see https://huggingface.co/org/name, or a/b/c and 1/2/3", None),
        ("org/name", None),
        ("POST /v1/completions/x", None),
    ],
)
def test_paths_are_those_a_user_would_type(places, typed: str, shown: str | None) -> None:
    assert publishable({"word": [typed.format(places)]}) == {"word": [shown or typed]}


@pytest.mark.parametrize(
    ("path", "recorded"),
    [("home/models/base", "~/models/base"), ("data", "../../data"), ("work", "..")],
)
def test_a_recorded_input_is_found_again(places, path: str, recorded: str) -> None:
    start = places / "work" / "out"
    assert recorded_path(places / path, start) == recorded
    assert found_path(recorded, start) == places / path


def test_within_the_home_directory_paths_stay_relative(places) -> None:
    """So that a tree of directories can be moved as a whole."""
    assert recorded_path(places / "home/models/base", places / "home/runs/out") == "../../models/base"
