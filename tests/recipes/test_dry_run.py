"""`qtk run --dry-run`: what would be done and why, what it takes, what the machine lacks; nothing on the disk changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from qtk.checkpoint.hub import survey
from qtk.engines.forecast import Rates
from qtk.errors import InputError, MachineError
from qtk.recipes.dry_run import Resources, dry_run
from qtk.recipes.machine_lacks import MemoryThere
from qtk.recipes.planned_run import DryRun
from qtk.recipes.recipe_run import run_recipe

RATES = Rates(
    products=5e10, forward=5e10, itemsize=4, rounding=1.5e-7, digest=1.5e9, disk=4e8, memory=2e10, start=3.0, threads=2
)
PLENTY = Resources(MemoryThere(64 * 10**9, 64 * 10**9), disk=lambda place: 10**12, rates=lambda place: RATES)
TINY = {
    "name": "tiny",
    "model": "model",
    "quantize": {"method": "rtn", "group_size": 32, "texts": "never"},
    "build": {"max_input_len": 64, "max_output_len": 32, "max_batch_size": 1, "float_engine": False},
    "bench": {"latency": {"shapes": "4/2", "warmups": 0, "runs": 2, "seconds": 0}},
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory, make_tiny, write_byte_tokenizer) -> Path:
    """A kitchen with a tiny model, recipe.yaml, and its finished run."""
    root = tmp_path_factory.mktemp("kitchen")
    make_tiny(root / "model", "llama")
    write_byte_tokenizer(root / "model")
    write(root, TINY)
    run_recipe(root / "recipe.yaml", root / "run")
    return root


@pytest.fixture
def kitchen(ran, tmp_path) -> Path:
    return Path(shutil.copytree(ran, tmp_path / "kitchen"))


def write(kitchen: Path, content: object) -> Path:
    path = kitchen / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def looked(kitchen: Path, run: str = "run", **how: object) -> DryRun:
    return dry_run(kitchen / "recipe.yaml", kitchen / run, resources=how.pop("resources", PLENTY), **how)


def reasons(found: DryRun) -> dict[str, str | None]:
    return {step.step: step.why for step in found.to_do}


def everything(root: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(root.rglob("*"))
    }


def test_a_finished_run_has_nothing_to_do_and_nothing_on_the_disk_changes(kitchen) -> None:
    before = everything(kitchen)
    found = looked(kitchen)
    assert [step.status for step in found.steps] == ["up to date"] * 4
    assert [step.step for step in found.steps] == ["quantize", "build", "latency", "report"]
    weights = (kitchen / "run/quantized/model.safetensors").stat().st_size
    whole = sum(path.stat().st_size for path in (kitchen / "run/quantized").iterdir())
    assert weights < found.steps[0].written < whole, "its files, but not the manifest that lists them"
    assert (found.needed_disk, found.rates, found.shortage) == (0, None, None)
    assert everything(kitchen) == before


def test_of_what_was_never_run_sizes_and_times_are_told(kitchen) -> None:
    before = everything(kitchen)
    found = looked(kitchen, "another")
    assert set(reasons(found).values()) == {"it was not done yet"}
    steps = {step.step: step for step in found.steps}
    real = (kitchen / "run/quantized/model.safetensors").stat().st_size
    assert steps["quantize"].written == pytest.approx(real, rel=0.1)
    real = sum(path.stat().st_size for path in (kitchen / "run/engine").glob("model*"))
    assert steps["build"].written == pytest.approx(real, rel=0.2)
    assert all(steps[name].seconds is not None for name in ("quantize", "build", "latency"))
    assert found.needed_disk >= steps["quantize"].written + steps["build"].written
    assert not found.begun
    assert everything(kitchen) == before


def test_a_changed_option_is_named_and_what_follows_from_it(kitchen) -> None:
    write(kitchen, {**TINY, "build": {**TINY["build"], "max_output_len": 16}})
    found = looked(kitchen)
    assert reasons(found) == {
        "build": "since then there is another option max_output_len",
        "latency": "since then there is another input build",
        "report": "since then there is another input build, another input latency",
    }
    assert found.steps[0].status == "up to date"
    assert {step.step: step.measured for step in found.to_do}["report"], "a report's time is that of the one before"
    done = run_recipe(kitchen / "recipe.yaml", kitchen / "run", mode="resume")
    assert [step.step for step in done.steps if step.status == "done"] == list(reasons(found))


def test_a_changed_input_file_is_named(kitchen) -> None:
    config = kitchen / "model" / "config.json"
    config.write_text(config.read_text() + "\n")
    found = looked(kitchen)
    assert reasons(found)["quantize"] == "since then there is another input model"
    assert len(found.to_do) == 4


def test_a_damaged_output_and_an_unfinished_one_are_said(kitchen) -> None:
    (kitchen / "run/latency/result.json").unlink()
    state = json.loads((kitchen / "run/qtk-run.json").read_text())
    state["begun"]["latency"] = "0" * 64
    (kitchen / "run/qtk-run.json").write_text(json.dumps(state))
    (kitchen / "run/latency.partial").mkdir()
    assert reasons(looked(kitchen))["latency"] == "its output is missing or was changed; it was begun"


def test_stages_are_chosen_as_in_a_run(kitchen) -> None:
    found = looked(kitchen, first_stage="latency", last_stage="latency")
    assert [(step.step, step.status) for step in found.steps] == [
        ("quantize", "taken as it is"),
        ("build", "taken as it is"),
        ("latency", "to do"),
    ]
    assert set(reasons(looked(kitchen, mode="overwrite")).values()) == {"it was asked for"}
    (kitchen / "run/engine/engine.json").unlink()
    with pytest.raises(InputError, match="takes it as it is"):
        looked(kitchen, first_stage="latency")
    with pytest.raises(InputError, match="does not have that stage"):
        looked(kitchen, first_stage="merge")


def test_an_output_that_is_replaced_stands_until_its_successor_does(kitchen) -> None:
    once = looked(kitchen, "another", last_stage="quantize").needed_disk
    again = looked(kitchen, mode="overwrite", last_stage="quantize").needed_disk
    assert again == once > 0
    whole = looked(kitchen, "another").needed_disk
    assert looked(kitchen, mode="overwrite").needed_disk < whole, "the old checkpoint is gone when the engine is built"


@pytest.mark.parametrize(
    ("resources", "what", "words"),
    [
        (Resources(PLENTY.memory, lambda place: 1000, PLENTY.rates), "disk", "the disk has 1.00 kB free"),
        (Resources(MemoryThere(10**6, 10**6), PLENTY.disk, PLENTY.rates), "memory", "1.00 MB"),
    ],
)
def test_too_little_disk_or_memory_is_lacking(kitchen, resources: Resources, what: str, words: str) -> None:
    found = looked(kitchen, "another", resources=resources)
    [lack, *_] = [lack for lack in found.lacks if lack.what == what]
    assert words in lack.text
    assert lack.step == "quantize"
    assert isinstance(found.shortage, MachineError)
    assert not looked(kitchen, resources=resources).lacks, "what is up to date needs nothing"


def test_a_disk_too_full_to_be_timed_is_lacking(kitchen) -> None:
    def full(place: Path) -> Rates:
        raise MachineError(f"{place}: the disk has 0 bytes free")

    found = looked(kitchen, "another", resources=Resources(PLENTY.memory, PLENTY.disk, full))
    assert [(lack.what, lack.step) for lack in found.lacks] == [("disk", "quantize")]
    assert len(found.to_do) == 4


def lacking(kitchen: Path, changes: dict[str, object]) -> set[tuple[str, str]]:
    write(kitchen, {**TINY, **changes})
    return {(lack.what, lack.step) for lack in looked(kitchen, "another").lacks}


def test_a_gpu_and_its_runtime_are_lacking(kitchen, pretend_gpu, hide) -> None:
    gpu = {"quantize": {**TINY["quantize"], "gpu": "a10"}, "build": {**TINY["build"], "gpu": "a10"}}
    hide("tensorrt_rtx", "cuda")
    pretend_gpu("9.0")
    assert lacking(kitchen, gpu) == {
        ("package", "build"),
        ("GPU", "latency"),
        ("package", "latency"),
    }
    pretend_gpu("8.6")
    assert ("GPU", "latency") not in lacking(kitchen, gpu)


def test_packages_of_extras_data_and_memory_limits_are_lacking(kitchen, hide) -> None:
    hide("gguf", "pyarrow", "datasets", "lm_eval")
    (kitchen / "rows.parquet").touch()
    gptq = {"group_size": 32, "samples": 2, "seq_len": 64}
    assert lacking(kitchen, {"quantize": {**gptq, "calibration": "rows.parquet"}}) == {("package", "quantize")}
    assert lacking(kitchen, {"quantize": {**gptq, "calibration": "org/set"}}) == {("package", "quantize")}
    only = {"build": None, "bench": {}}
    llama_cpp = {"quantize": {**TINY["quantize"], "container": "gguf"}}
    assert lacking(kitchen, {**llama_cpp, **only}) == {("package", "quantize")}
    assert lacking(kitchen, {"quantize": {**gptq, "memory": 0.001}}) == {("memory", "quantize")}
    assert lacking(kitchen, {"quantize": {**gptq, "device": "cuda:99"}}) == {("GPU", "quantize")}
    suites = {"bench": {"accuracy": {"suite": ["lm-eval:arc_easy"]}}}
    assert lacking(kitchen, suites) == {("package", "accuracy")}
    absent = {"bench": {"accuracy": {"suite": ["humaneval-x:python"], "data": "./nowhere"}}}
    assert ("data", "accuracy") in lacking(kitchen, absent)


def test_a_training_is_foretold_too(kitchen, hide) -> None:
    (kitchen / "rows.jsonl").write_text('{"text": "a"}\n')
    training = {"data": ["rows.jsonl"], "rank": 8, "seq_len": 64, "max_steps": 3, "batch_size": 2}
    write(kitchen, {**TINY, "finetune": training})
    found = looked(kitchen, "another")
    steps = {step.step: step for step in found.steps}
    assert list(steps)[:2] == ["finetune", "merge"]
    assert steps["finetune"].at_most
    assert steps["finetune"].seconds is not None
    one_block = 4 * 128 + 2 * (128 + 64) + 3 * (128 + 256)  # inputs and outputs: q and o, k and v, the MLP's three
    assert steps["finetune"].written == 4 * 8 * 3 * one_block
    hide("accelerate")
    assert [(lack.what, lack.step) for lack in looked(kitchen, "another").lacks] == [("package", "finetune")]
    assert lacking(kitchen, {"finetune": {**training, "device": "cuda:99"}}) >= {("GPU", "finetune")}


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """hide("gguf"): from here on no package of that name is installed."""
    import importlib.util

    found = importlib.util.find_spec

    def make(*names: str) -> None:
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name in names else found(name, *rest)
        )

    return make


def test_what_the_target_cannot_take_is_refused_before_any_work(kitchen) -> None:
    write(kitchen, {**TINY, "quantize": {**TINY["quantize"], "group_size": 48}})
    with pytest.raises(InputError):
        looked(kitchen, "another")
    write(kitchen, {**TINY, "quantize": {**TINY["quantize"], "sym": False}, "build": {**TINY["build"], "gpu": "a10"}})
    with pytest.raises(InputError, match="cannot be run to its end"):
        looked(kitchen, "another")


def test_a_model_on_the_hub_is_looked_at_and_not_fetched(stand_in_hub, kitchen, tmp_path) -> None:
    stand_in_hub.models["tiny/llama"] = kitchen / "model"
    write(kitchen, {**TINY, "model": "tiny/llama"})
    before = everything(tmp_path)
    found = looked(kitchen, "another")
    [source] = found.sources
    assert source.missing == sum(path.stat().st_size for path in (kitchen / "model").iterdir())
    assert source.place is None
    assert {step.step: step.written for step in found.steps}["quantize"], "the shapes are known"
    assert everything(tmp_path) == before
    small = Resources(PLENTY.memory, lambda place: source.missing, PLENTY.rates)
    assert [lack.what for lack in looked(kitchen, "another", resources=small).lacks] == ["disk"]


def test_what_is_in_the_hub_s_cache_is_not_missing(stand_in_hub, kitchen) -> None:
    from qtk.checkpoint.hub import fetch

    stand_in_hub.models["tiny/llama"] = kitchen / "model"
    assert survey("tiny/llama", "model").directory is None
    directory = fetch("tiny/llama")
    assert (survey("tiny/llama", "model").directory, survey("tiny/llama", "model").missing) == (directory, 0)


def test_a_hub_out_of_reach_is_lacking(unreachable_hub, kitchen) -> None:
    write(kitchen, {**TINY, "model": "nobody-here/no-such-model"})
    found = looked(kitchen, "another")
    assert [(lack.what, lack.step) for lack in found.lacks] == [("hub", "model")]
    assert len(found.to_do) == 4


def test_the_command_says_it_and_its_exit_code_too(kitchen, run_qtk) -> None:
    recipe, run = kitchen / "recipe.yaml", kitchen / "run"
    answer = run_qtk("run", recipe, "-o", run, "--dry-run")
    assert answer.returncode == 0, answer.stderr
    assert "Nothing is to be done" in answer.stdout
    answer = run_qtk("run", recipe, "-o", run, "--dry-run", "--set", "build.max_output_len=16")
    assert answer.returncode == 0, answer.stderr
    assert "another option max_output_len" in answer.stdout
    assert "3 steps to do" in answer.stdout
    answer = run_qtk("run", recipe, "-o", run, "--dry-run", "--set", "quantize.device=cuda:99", "--json")
    assert answer.returncode == 4
    data = json.loads(answer.stdout)
    assert data["lacks"][0]["what"] == "GPU"
    assert "This machine lacks what the run needs" in answer.stderr
    write(kitchen, {**TINY, "quantise": {}})
    answer = run_qtk("run", recipe, "-o", run, "--dry-run")
    assert answer.returncode == 2
    assert "quantise: no such setting" in answer.stderr
