"""A finished run of a tiny model with a licence, and bundles of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.commands import run_in_process

RECIPE: dict[str, Any] = {
    "name": "tiny-release",
    "quantize": {"group_size": 32, "method": "rtn"},
    "build": {"max_input_len": 32, "max_output_len": 8, "max_batch_size": 1, "float_engine": True},
    "bench": {
        "latency": {"shapes": "8/2", "warmups": 0, "runs": 2, "seconds": 0},
        "divergence": {"rows": 2, "seq_len": 16},
    },
    "gates": [{"metric": "size", "at_most": 1}, {"metric": "kl", "at_most": 5}],
}


@pytest.fixture(scope="session")
def released_run(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose gates passed, of a base that has a card and a licence. Read only."""
    folder = tmp_path_factory.mktemp("released")
    base = shutil.copytree(tiny(), folder / "base")
    (base / "README.md").write_text("---\nlicense: mit\nbase_model: tiny/origin\n---\n# Tiny\n")
    (base / "LICENSE").write_text("MIT License\n")
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, "model": "base"}))
    done = run_in_process(["run", str(recipe), "-o", str(folder / "run")])
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="session")
def made_bundle(released_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of that run. Read only."""
    place = tmp_path_factory.mktemp("bundles") / "tiny-int4"
    done = run_in_process(["bundle", str(released_run), "-o", str(place)])
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def bundle(made_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle alone, as another machine has it."""
    return shutil.copytree(made_bundle, tmp_path / "elsewhere" / "tiny-int4")
