"""Mutations of every kind of file that qtk reads: refused in a sentence, or read, in bounded time and memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from faults.mutations import TARGETS, Tally, case, run_cases

FEW, MANY = 12, int(os.environ.get("QTK_TEST_MUTATIONS", 4000))


def _root(workshop, tmp_path: Path, name: str) -> Path:
    if not (workshop.root / TARGETS[name].file.partition("/")[0]).exists():
        pytest.skip("gguf is not installed")
    return workshop.copy(tmp_path / "w").root


def _whole(tally: Tally, count: int) -> None:
    assert tally.faults == []
    assert sum(tally.counts.values()) == count


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_mutations(workshop, tmp_path, name: str) -> None:
    _whole(run_cases(name, _root(workshop, tmp_path, name), seed=1, first=0, count=FEW), FEW)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", TARGETS)
def test_many_mutations(workshop, tmp_path, name: str) -> None:
    _whole(run_cases(name, _root(workshop, tmp_path, name), seed=2, first=0, count=MANY), MANY)


# Mutations that once were faults: half of a letter as a special token, a list as the role of a turn, names of files that are too
# long, no groups at all, half of a letter in YAML.
FOUND = [
    ("tokenizer config", 2, 198),
    ("training rows", 2, 10),
    ("index", 3, 179),
    ("index", 3, 1086),
    ("manifest", 3, 400),
    ("manifest", 3, 981),
    ("compressed-tensors config", 3, 681),
    ("recipe", 2, 1161),
]


@pytest.mark.parametrize(("name", "seed", "number"), FOUND)
def test_what_was_found_stays_mended(workshop, tmp_path, name: str, seed: int, number: int) -> None:
    _whole(run_cases(name, _root(workshop, tmp_path, name), seed=seed, first=number, count=1), 1)


def test_a_case_can_be_repeated(workshop) -> None:
    whole = (workshop.root / "recipe.yaml").read_bytes()
    assert case("recipe", whole, 1, 7) == case("recipe", whole, 1, 7) != whole
