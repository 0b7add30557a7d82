"""Sweeps of a tiny model: what is shared, ranked, resumed and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from qtk.checkpoint.manifest import read_manifest
from qtk.recipes.finished_run import verify_path
from qtk.recipes.reading import RecipeFile
from qtk.recipes.state import RunState
from qtk.sweeps.grid import read_grid
from qtk.sweeps.sweep import run_sweep

RECIPE = {
    "name": "tiny",
    "model": "model",
    "quantize": {"method": "rtn", "group_size": 32, "samples": 2, "seq_len": 64},
    "bench": {"divergence": {"rows": 2, "seq_len": 32}},
}


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory, make_tiny, write_byte_tokenizer) -> Path:
    """A directory with a tiny model and recipe.yaml."""
    root = tmp_path_factory.mktemp("kitchen")
    make_tiny(root / "model", "llama")
    write_byte_tokenizer(root / "model")
    (root / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return root


@pytest.fixture(scope="module")
def swept(kitchen: Path) -> Path:
    """Two methods times two lengths of the divergence's rows: quantized twice, measured four times."""
    out = kitchen / "swept"
    axes = read_grid(["quantize.method=rtn,gptq", "bench.divergence.seq_len=16,32"])
    found = run_sweep(RecipeFile(kitchen / "recipe.yaml", kitchen), axes, out)
    assert [it.error for it in found] == [None] * 4
    return out


def quantized(out: Path) -> dict[str, Path]:
    return {
        run.name: run / "quantized" / "model.safetensors"
        for run in sorted(out.iterdir())
        if (run / "quantized").is_dir()
    }


def test_what_variants_have_in_common_is_done_once(swept: Path) -> None:
    files = quantized(swept)
    assert len(files) == 4
    assert len({path.stat().st_ino for path in files.values()}) == 2
    assert files["method-rtn.seq-len-16"].samefile(files["method-rtn.seq-len-32"])
    assert not [finding for finding in verify_path(swept) if finding.bad]


def test_each_variant_is_a_run_of_its_own(swept: Path, run_qtk) -> None:
    run = swept / "method-gptq.seq-len-16"
    state = RunState.load(run)
    assert state is not None
    assert list(state.steps) == ["quantize", "divergence", "report"]
    assert "method gptq, seq_len 16" in (run / "report" / "report.md").read_text()
    assert read_manifest(run / "divergence").options["seq_len"] == 16
    assert run_qtk("verify", run).returncode == 0


def test_the_command_ranks_and_resumes(kitchen: Path, swept: Path, run_qtk) -> None:
    words = ("sweep", kitchen / "recipe.yaml", "-o", swept, "--resume", "--json", "--grid", "quantize.method=rtn,gptq")
    done = run_qtk(*words, "--grid", "bench.divergence.seq_len=16,32")
    assert done.returncode == 0, done.stderr
    assert "quantize" not in done.stderr
    found = json.loads(done.stdout)
    assert found["measures"] == ["bytes", "kl"]
    assert {it["name"] for it in found["variants"]} == set(quantized(swept))
    best = [it for it in found["variants"] if it["best"]]
    assert found["variants"][: len(best)] == best
    assert min(it["kl"] for it in found["variants"]) == best[0]["kl"]
    assert "method-gptq.seq-len-16" in (swept / "ranking" / "ranking.md").read_text()
    assert (swept / "ranking" / "ranking.svg").read_text().startswith("<svg")
    refused = run_qtk(*(word for word in words if word != "--resume"))
    assert (refused.returncode, "--resume continues" in refused.stderr) == (2, True)


def test_a_variant_that_fails_does_not_stop_the_others(kitchen: Path, tmp_path: Path, run_qtk) -> None:
    out, little = tmp_path / "out", tmp_path / "little.txt"
    little.write_text("two words")
    grid = f"quantize.calibration={little},python-stdlib"
    done = run_qtk(
        "sweep", kitchen / "recipe.yaml", "-o", out, "--set", "quantize.method=gptq", "--grid", grid, "--json"
    )
    assert done.returncode == 2, done.stderr
    assert "1 of 2 variants failed" in done.stderr
    ranked, failed = json.loads(done.stdout)["variants"]
    assert "little.txt" in failed["error"]
    assert (ranked["best"], ranked["settings"]) == (True, {"quantize.calibration": "python-stdlib"})
    assert (Path(ranked["directory"]) / "report" / "report.html").is_file()


def test_a_variant_that_is_no_recipe_is_refused_before_any_work(kitchen: Path, tmp_path: Path, run_qtk) -> None:
    words = ("sweep", kitchen / "recipe.yaml", "-o", tmp_path / "out")
    for grid, complaint in (("quantize.bitz=4", "did you mean bits"), ("quantize.bits=4,many", "bits")):
        done = run_qtk(*words, "--grid", grid)
        assert (done.returncode, complaint in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_is_not_there(kitchen: Path, tmp_path: Path, run_qtk) -> None:
    pytest.importorskip("ray")
    words = ("sweep", kitchen / "recipe.yaml", "--grid", "quantize.bits=4,8", "-o", tmp_path / "out")
    done = run_qtk(*words, "--ray", "127.0.0.1:1", fresh=True)
    assert (done.returncode, "no Ray cluster" in done.stderr) == (4, True), done.stderr
