"""What config.json of a model that qtk wrote says to its readers: rope in both spellings, whoever wrote the base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qtk.checkpoint.reader import Checkpoint
from qtk.models.rope import RopeSettings
from qtk.quantization.formats.registry import FORMATS

NEW = {"rope_type": "linear", "factor": 4.0, "rope_theta": 100000.0}
OLD = {"rope_theta": 100000.0, "rope_scaling": {"type": "linear", "factor": 4.0}}


def base_in(spelling: str, tiny, folder: Path) -> Path:
    """The same model, by transformers 5 or by one before it."""
    model = shutil.copytree(tiny("llama-linear-rope"), folder / "base")
    config = json.loads((model / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("rope_parameters", *OLD)}
    config |= {"rope_parameters": NEW} if spelling == "new" else OLD
    (model / "config.json").write_text(json.dumps(config))
    return model


def assert_both(written: Path) -> None:
    config = Checkpoint(written).config
    meant = RopeSettings.from_config({"rope_parameters": NEW}, 512)
    assert RopeSettings.from_config({"rope_parameters": config["rope_parameters"]}, 512) == meant
    assert RopeSettings.from_config({name: config[name] for name in OLD}, 512) == meant


@pytest.mark.parametrize("spelling", ["old", "new"])
@pytest.mark.parametrize("container", sorted(set(FORMATS) - {"gguf"}))
def test_every_container_spells_rope_both_ways(tmp_path, tiny, run_qtk, container: str, spelling: str) -> None:
    model, out = base_in(spelling, tiny, tmp_path), tmp_path / "out"
    done = run_qtk(*("quantize", model, "-o", out, "--method", "rtn", "--group-size", 64, "--container", container))
    assert done.returncode == 0, done.stderr
    assert_both(out)


@pytest.mark.parametrize("spelling", ["old", "new"])
def test_a_merged_model_spells_rope_both_ways(tmp_path, tiny, run_qtk, make_adapter, spelling: str) -> None:
    model = base_in(spelling, tiny, tmp_path)
    adapter = make_adapter(model, tmp_path / "adapter")
    done = run_qtk("merge", model, adapter, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert_both(tmp_path / "out")


@pytest.mark.parametrize(
    "target",
    [(), ("--gpu", "cpu"), ("--gpu", "a10"), ("--gpu", "a10", "--backend", "tensorrt-llm"), ("--backend", "vllm")],
)
def test_modelopt_in_groups_of_32_is_refused_whatever_the_backend(tmp_path, tiny, run_qtk, target: tuple) -> None:
    words = ("--container", "modelopt", "--group-size", 32, *target)
    done = run_qtk("quantize", tiny(), "-o", tmp_path / "out", *words)
    assert done.returncode == 2
    assert "64 or 128" in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == []
