"""Recipes: what they may say, and runs that repeat nothing that is up to date."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

import qtk
from qtk.checkpoint.manifest import canonical_digest, read_manifest
from qtk.checkpoint.result_versions import RESULT_VERSIONS
from qtk.errors import InputError, MachineError, QtkError
from qtk.progress import Progress
from qtk.recipes.finished_run import run_summary, verify_run
from qtk.recipes.reading import find_recipe, read_recipe
from qtk.recipes.recipe_run import run_recipe
from qtk.recipes.schema import Recipe, beside
from qtk.recipes.sources import resolve_source
from qtk.recipes.step_work import differing_terms
from qtk.recipes.steps import recipe_steps
from qtk.release.inspection import inspect_directory
from qtk.shipped import shipped_directory, shipped_names

TINY = {
    "name": "tiny",
    "model": "model",
    "adapters": ["adapter"],
    "quantize": {"group_size": 32, "samples": 2, "seq_len": 64},
    "build": {"max_input_len": 64, "max_output_len": 32, "max_batch_size": 1},
    "bench": {
        "sample": {"max_new_tokens": 4},
        "latency": {"shapes": "4/2", "warmups": 0, "runs": 2, "seconds": 0},
        "divergence": {"rows": 2, "seq_len": 32},
    },
}


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory, make_tiny, write_byte_tokenizer) -> Path:
    """A directory with a tiny model, an adapter trained by nobody but not zero, and recipe.yaml."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    root = tmp_path_factory.mktemp("kitchen")
    make_tiny(root / "model", "llama")
    write_byte_tokenizer(root / "model")
    peft = get_peft_model(
        AutoModelForCausalLM.from_pretrained(root / "model"), LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    )
    torch.manual_seed(0)
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    peft.save_pretrained(root / "adapter")
    write(root / "recipe.yaml", TINY)
    return root


def write(path: Path, content: object) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def done(outcome) -> list[str]:
    return [step.step for step in outcome.steps if step.status == "done"]


ALL = [
    "merge",
    "quantize",
    "build-float",
    "build",
    "sample",
    "latency",
    "divergence",
    "divergence-engine",
    "report",
]


@pytest.fixture(scope="module")
def first_run(kitchen) -> Path:
    """The whole recipe, run once. Tests that change it copy the kitchen first."""
    outcome = run_recipe(kitchen / "recipe.yaml", kitchen / "run")
    assert done(outcome) == ALL
    return kitchen / "run"


@pytest.fixture
def copied(first_run, tmp_path) -> Path:
    """A kitchen of one's own, with the finished run in it."""
    return Path(shutil.copytree(first_run.parent, tmp_path / "kitchen"))


@pytest.mark.parametrize("name", shipped_names("recipes"))
def test_every_shipped_recipe_is_valid(name: str) -> None:
    file = find_recipe(name)
    recipe = read_recipe(file.path)
    assert recipe.name == name
    steps = recipe_steps(recipe, file.directory)
    assert steps[-1].stage == "report"
    before: set[str] = {"model", *(f"adapter {i + 1}" for i in range(len(recipe.adapters)))}
    for step in steps:
        assert set(step.inputs) <= before, "a step reads only what stands before it"
        before.add(step.name)


def test_the_model_case_is_the_one_of_the_published_table() -> None:
    recipe = read_recipe(shipped_directory("recipes") / "codefuse-deepseek-33b-a10.yaml")
    assert recipe.build is not None
    assert recipe.quantize is not None
    assert recipe.bench.latency is not None
    assert (recipe.build.gpu, recipe.quantize.bits, recipe.build.float_engine) == ("a10", 4, False)
    assert recipe.bench.latency.shapes == "16/8,64/32,256/128,1024/512"
    assert recipe.build.build_options(Path()).gpu == "a10"


def test_all_offending_fields_are_listed_by_their_path(tmp_path) -> None:
    path = write(
        tmp_path / "bad.yaml",
        {
            "name": "a b",
            "model_dir": "x",
            "quantize": {"bits": 3, "sample_count": 4},
            "build": {"gpu": "a11"},
            "bench": {"latency": {"shapes": "16x8"}, "speed": {}},
        },
    )
    with pytest.raises(InputError) as caught:
        read_recipe(path)
    message = str(caught.value)
    for expected in (
        "name: ",
        "model: Field required",
        "model_dir: no such setting",
        "quantize.bits: 3 bits are not supported",
        "quantize.sample_count: no such setting",
        "build.gpu: GPU 'a11' is not known. Did you mean a10",
        "bench.latency.shapes: --shapes takes INPUT/OUTPUT pairs",
        "bench.speed: no such setting",
    ):
        assert expected in message


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"build": None}, "bench.latency: there is no `build`"),
        ({"build": None}, "bench.sample: there is no `build`"),
        ({"quantize": None}, "bench.divergence: there is no `quantize`"),
        (
            {"build": None, "bench": {"accuracy": {"suite": ["humaneval"]}}},
            "bench.accuracy: there is no `build`",
        ),
        (
            {"bench": {"accuracy": {"suite": ["humaneval"], "compat": "codefuse"}}},
            "bench.accuracy.compat: name the processor",
        ),
        ({"bench": {}, "first_look": True}, "first_look: it needs `quantize`, `build` and `bench.sample`"),
        ({"merge": {"weight": [1.0, 2.0]}}, "merge.weight: 2 weights for 1 adapters"),
    ],
)
def test_contradictions_are_found_before_any_work(tmp_path, change: dict, complaint: str) -> None:
    content = {key: value for key, value in {**TINY, **change}.items() if value is not None}
    with pytest.raises(InputError, match=complaint.replace(".", r"\.")):
        read_recipe(write(tmp_path / "recipe.yaml", content))


@pytest.mark.parametrize("text", ["- a\n- b\n", "", "name: [unclosed", "!!python/object/apply:os.system [ls]"])
def test_what_is_not_a_recipe_is_refused(tmp_path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        read_recipe(tmp_path / "recipe.yaml")


def test_an_unknown_recipe_name_lists_the_known() -> None:
    with pytest.raises(InputError, match="smollm2-135m"):
        find_recipe("smollm3")


def test_a_source_is_a_directory_beside_the_recipe(tmp_path) -> None:
    (tmp_path / "models" / "m").mkdir(parents=True)
    assert resolve_source("models/m", tmp_path) == tmp_path / "models" / "m"


@pytest.mark.parametrize("text", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c"])
def test_what_is_neither_a_directory_nor_a_hub_id_is_refused(tmp_path, text: str) -> None:
    with pytest.raises(InputError, match="is not a directory"):
        resolve_source(text, tmp_path)


def test_a_run_whose_model_cannot_be_fetched_may_be_started_again(tmp_path, unreachable_hub) -> None:
    recipe = write(tmp_path / "recipe.yaml", {"name": "far", "model": "nobody-here/no-such-model", "quantize": {}})
    for _ in range(2):  # nothing was begun, so the second time is no repetition
        with pytest.raises(MachineError, match="the hub cannot be asked for it"):
            run_recipe(recipe, tmp_path / "run")


def test_a_run_leaves_a_report_and_a_chain_that_verifies(first_run) -> None:
    text = (first_run / "report" / "report.md").read_text()
    for heading in (
        "## Sizes",
        "## Merge",
        "## Quantization",
        "## Engines",
        "## What the engines say",
        "## Latency",
        "## Divergence",
        "## Chain",
    ):
        assert heading in text
    result = json.loads((first_run / "divergence" / "result.json").read_text())
    assert f"{result['pooled']['perplexity']:.1f}"[:3] in text
    for name in ("error-quantized.svg", "latency.svg"):
        assert (first_run / "report" / name).read_text(encoding="utf-8").startswith("<svg")
        assert f"({name})" in text or f"(<{name}>)" in text
    assert "None" not in text
    assert "nan" not in text
    findings = verify_run(first_run)
    assert {finding.status for finding in findings} == {"ok"}
    assert {Path(f.directory).name for f in findings} >= {"model", "adapter", "merged", "quantized", "report"}
    assert all(not record.path.startswith("/") for record in read_manifest(first_run / "report").inputs)


def test_a_second_run_repeats_nothing(copied) -> None:
    outcome = run_recipe(copied / "recipe.yaml", copied / "run", mode="resume")
    assert done(outcome) == []
    assert [step.step for step in outcome.steps] == ALL


def test_a_run_is_not_begun_twice_without_being_told_how(copied) -> None:
    with pytest.raises(InputError, match="--resume"):
        run_recipe(copied / "recipe.yaml", copied / "run")
    (copied / "home").mkdir()
    (copied / "home" / "file").write_text("mine")
    with pytest.raises(InputError, match="is not a run of qtk"):
        run_recipe(copied / "recipe.yaml", copied / "home", mode="overwrite")


def test_a_run_of_before_is_resumed_with_the_steps_of_today(copied) -> None:
    """Each engine had a latency step of its own; the recipe's one step over both takes their place."""
    shutil.copytree(copied / "run" / "latency", copied / "run" / "latency-float")
    path = copied / "run" / "qtk-run.json"
    state = json.loads(path.read_text())
    state["steps"]["latency-float"] = {**state["steps"]["latency"], "directory": "latency-float"}
    path.write_text(json.dumps(state))
    assert done(run_recipe(copied / "recipe.yaml", copied / "run", mode="resume")) == []
    assert [step.step for step in run_summary(copied / "run").steps] == ALL
    assert (copied / "run" / "latency-float").is_dir(), "results are not deleted"


def test_changed_options_redo_what_follows_from_them(copied) -> None:
    changed = {**TINY, "bench": {**TINY["bench"], "divergence": {"rows": 3, "seq_len": 32}}}
    outcome = run_recipe(write(copied / "recipe.yaml", changed), copied / "run", mode="resume")
    assert done(outcome) == ["divergence", "divergence-engine", "report"]


def test_it_is_said_why_a_step_is_done_again(copied, capfd) -> None:
    write(copied / "recipe.yaml", {**TINY, "bench": {**TINY["bench"], "divergence": {"rows": 3, "seq_len": 32}}})
    (copied / "run" / "latency" / "result.json").unlink()
    outcome = run_recipe(copied / "recipe.yaml", copied / "run", mode="resume")
    why = {step.step: step.why for step in outcome.steps if step.status == "done"}
    assert why["divergence"] == "since then there is another option rows"
    assert why["latency"] == "its output is missing or was changed"
    assert why["report"].startswith("since then there is another input latency, another input divergence")
    assert "divergence: again, because since then there is another option rows" in capfd.readouterr().err


def test_a_new_version_of_qtk_redoes_only_what_it_does_otherwise(copied, monkeypatch) -> None:
    monkeypatch.setattr("qtk.__version__", "99.0")
    assert done(run_recipe(copied / "recipe.yaml", copied / "run", mode="resume")) == ["report"]
    monkeypatch.setitem(RESULT_VERSIONS, "build", 2)
    outcome = run_recipe(copied / "recipe.yaml", copied / "run", mode="resume", last_stage="build")
    assert done(outcome) == ["build-float", "build"]
    assert outcome.steps[-1].why == "since then there is another version of qtk's build"


def test_the_state_of_an_earlier_qtk_is_taken_as_it_is(kitchen, tmp_path, monkeypatch) -> None:
    """Its records have one digest, taken of qtk's version too, and no terms."""
    stage = {"method": "rtn", "group_size": 32}
    content = {"name": "old", "model": str(kitchen / "model"), "quantize": stage}
    recipe = write(tmp_path / "recipe.yaml", content)
    run_recipe(recipe, tmp_path / "run", last_stage="quantize")
    path = tmp_path / "run" / "qtk-run.json"
    state = json.loads(path.read_text())
    files = state["seen"]
    [step] = recipe_steps(read_recipe(recipe), tmp_path)[:1]
    inputs = {"model": canonical_digest({Path(name).name: seen["sha256"] for name, seen in files.items()})}
    old = {"qtk": qtk.__version__, "options": dict(step.options.values), "inputs": inputs, "texts": {}}
    del state["steps"]["quantize"]["terms"]
    state["steps"]["quantize"]["digest"] = canonical_digest(old)
    path.write_text(json.dumps(state))
    monkeypatch.setattr("qtk.__version__", "99.0")
    monkeypatch.setitem(RESULT_VERSIONS, "quantize", 1)
    assert done(run_recipe(recipe, tmp_path / "run", mode="resume", last_stage="quantize")) == []
    monkeypatch.setitem(RESULT_VERSIONS, "quantize", 2)
    assert "not what would be used now" in str(
        run_recipe(recipe, tmp_path / "run", mode="resume", last_stage="quantize").steps[-1].why
    )
    write(recipe, {**content, "quantize": {**stage, "sym": False}})
    assert done(run_recipe(recipe, tmp_path / "run", mode="resume", last_stage="quantize")) == ["quantize"]


def test_an_option_that_is_new_makes_nothing_stale_at_its_default() -> None:
    recorded = {"option a": "1", "option gone": "2", "input m": "3"}
    now = {"option a": "1", "option new": "4", "input m": "3"}
    assert differing_terms(recorded, now, frozenset({"new"})) == []
    assert differing_terms(recorded, now, frozenset()) == ["option new"]
    assert differing_terms(recorded, {**now, "option a": "5", "input m": "6"}, frozenset({"a", "new"})) == [
        "option a",
        "input m",
    ]


def test_a_changed_input_redoes_everything_that_read_it(copied) -> None:
    path = copied / "adapter" / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 8', '"lora_alpha": 16'))
    outcome = run_recipe(copied / "recipe.yaml", copied / "run", mode="resume", last_stage="quantize")
    assert done(outcome) == ["merge", "quantize"]


def test_a_data_set_may_have_a_dot_in_its_name(tmp_path) -> None:
    (tmp_path / "notes.v2").write_text("text")
    assert beside(tmp_path, "org/set-v1.5") == "org/set-v1.5"
    assert beside(tmp_path, "python-stdlib") == "python-stdlib"
    assert beside(tmp_path, "absent.jsonl") == str(tmp_path / "absent.jsonl")
    assert beside(tmp_path, "notes.v2") == str(tmp_path / "notes.v2")


def test_a_calibration_file_lies_beside_the_recipe(kitchen, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir("/")  # not in the directory that qtk was started from
    (tmp_path / "rows.txt").write_text("def f(x):\n    return x\n" * 40)
    stage = {"group_size": 32, "samples": 2, "seq_len": 64, "calibration": "rows.txt"}
    recipe = write(tmp_path / "recipe.yaml", {"name": "own", "model": str(kitchen / "model"), "quantize": stage})
    assert done(run_recipe(recipe, tmp_path / "run")) == ["quantize", "report"]
    assert done(run_recipe(recipe, tmp_path / "run", mode="resume")) == []
    (tmp_path / "rows.txt").write_text("class A:\n    pass\n" * 60)
    assert done(run_recipe(recipe, tmp_path / "run", mode="resume")) == ["quantize", "report"]


def test_a_lost_output_is_made_again(copied) -> None:
    shutil.rmtree(copied / "run" / "engine")
    (copied / "run" / "divergence" / "result.json").unlink()
    assert {s.step for s in run_summary(copied / "run").steps if s.status != "ok"} == {"build", "divergence"}
    outcome = run_recipe(copied / "recipe.yaml", copied / "run", mode="resume")
    # What read the engine is done again too, since the new one is another one.
    assert done(outcome) == ["build", "sample", "latency", "divergence", "divergence-engine", "report"]


def test_from_and_until(copied) -> None:
    """The stages on another machine: the run's directory is copied there, the sources are not."""
    elsewhere = copied.parent / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(copied / "run", elsewhere / "run")
    recipe = shutil.copy(copied / "recipe.yaml", elsewhere)
    outcome = run_recipe(Path(recipe), elsewhere / "run", first_stage="latency", last_stage="latency")
    assert {s.step: s.status for s in outcome.steps} == {
        "merge": "taken as it is",
        "quantize": "taken as it is",
        "build-float": "taken as it is",
        "build": "taken as it is",
        "sample": "taken as it is",
        "latency": "done",
    }
    shutil.rmtree(elsewhere / "run" / "quantized")
    with pytest.raises(InputError, match="quantized is missing or was changed"):
        run_recipe(Path(recipe), elsewhere / "run", first_stage="latency")
    with pytest.raises(InputError, match="nothing would be run"):
        run_recipe(Path(recipe), elsewhere / "run", first_stage="report", last_stage="merge")


def test_a_failing_step_is_named_and_what_was_done_is_kept(copied) -> None:
    broken = {**TINY, "quantize": {**TINY["quantize"], "group_size": 64, "seq_len": 100_000}}
    write(copied / "recipe.yaml", broken)
    with pytest.raises(QtkError, match="Step quantize of tiny: --seq-len 100000") as caught:
        run_recipe(copied / "recipe.yaml", copied / "run", mode="resume")
    assert caught.value.exit_code == 2
    assert (copied / "run" / "quantized" / "config.json").is_file(), "the earlier result stands"
    assert done(run_recipe(write(copied / "recipe.yaml", TINY), copied / "run", mode="resume")) == []


@pytest.fixture
def watched(monkeypatch):
    """watched(stop_after=2) -> the blocks that each quantization from here on has to do; stopped after that many."""
    real = Progress.advance

    def watch(stop_after: int | None = None) -> list[int | None]:
        to_do: list[int | None] = []

        def advance(self, count: int = 1, detail: str = "") -> None:
            real(self, count, detail)
            if self.label.startswith("quantize"):
                to_do.append(self.total)
                if len(to_do) == stop_after:
                    raise KeyboardInterrupt

        monkeypatch.setattr(Progress, "advance", advance)
        return to_do

    return watch


def test_a_stopped_step_is_resumed_only_on_the_same_terms(kitchen, tmp_path, watched) -> None:
    def recipe(samples: int) -> Path:
        stage = {**TINY["quantize"], "samples": samples}
        return write(tmp_path / "recipe.yaml", {"name": "own", "model": str(kitchen / "model"), "quantize": stage})

    watched(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe(samples=2), tmp_path / "run")
    to_do = watched()
    assert done(run_recipe(recipe(samples=2), tmp_path / "run", mode="resume")) == ["quantize", "report"]
    assert to_do == [1], "two of the three blocks were done before"
    watched(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe(samples=3), tmp_path / "run", mode="resume")
    to_do = watched()
    run_recipe(recipe(samples=4), tmp_path / "run", mode="resume")
    assert to_do == [3, 3, 3], "the two blocks were made of other rows"


def test_a_stage_that_was_stopped_is_not_thrown_away_by_typing_the_command_again(kitchen, tmp_path, watched) -> None:
    stage = TINY["quantize"]
    content = {"name": "own", "model": str(kitchen / "model"), "quantize": stage}
    recipe, run = write(tmp_path / "recipe.yaml", content), tmp_path / "run"
    watched(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, run, first_stage="quantize")
    to_do = watched()
    with pytest.raises(InputError, match=r"2 of 3 blocks done.*--resume continues it"):
        run_recipe(recipe, run, first_stage="quantize")
    run_recipe(recipe, run, first_stage="quantize", mode="resume", last_stage="quantize")
    assert to_do == [1]


def test_a_recipe_without_adapters_or_engines(kitchen, tmp_path) -> None:
    content = {"name": "bare", "model": str(kitchen / "model"), "quantize": {"method": "rtn", "group_size": 32}}
    outcome = run_recipe(write(tmp_path / "bare.yaml", content), tmp_path / "run")
    assert done(outcome) == ["quantize", "report"]
    assert "## Latency" not in (tmp_path / "run" / "report" / "report.md").read_text()


def test_an_engine_speaks_before_the_long_steps(kitchen, tmp_path, capsys) -> None:
    changed = {**TINY, "model": str(kitchen / "model"), "adapters": [], "first_look": True}
    path = write(tmp_path / "recipe.yaml", changed)
    outcome = run_recipe(path, tmp_path / "run", last_stage="sources")
    assert done(outcome) == ["first-look"]
    assert "first-look says: 'def fibonacci(n):" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir() if path.is_dir()] == ["first-look"]
    assert not [finding for finding in verify_run(tmp_path / "run") if finding.bad]


def test_accuracy_is_a_stage(shared_data, tmp_path, make_tiny, write_byte_tokenizer) -> None:
    write_byte_tokenizer(make_tiny(tmp_path / "model", "llama", max_position_embeddings=1024))
    content = {
        "name": "graded",
        "model": "model",
        "quantize": {"method": "rtn", "group_size": 32},
        "build": {"max_input_len": 900, "max_output_len": 8, "max_batch_size": 1},
        "bench": {
            "accuracy": {"suite": ["humaneval-x:python"], "limit": 2, "data": str(shared_data), "max_new_tokens": 8}
        },
    }
    outcome = run_recipe(write(tmp_path / "graded.yaml", content), tmp_path / "run")
    assert done(outcome)[-3:] == ["accuracy-float", "accuracy", "report"]
    text = (tmp_path / "run" / "report" / "report.md").read_text()
    assert re.search(r"\| accuracy-float \| humaneval-x \| python \| 2 of \d+ \| pass@1 \|", text)
    assert "pass@1 before and after; tolerance 2 points" in text
    assert "before: accuracy-float, after: accuracy:" in text


def test_a_recipe_of_the_schema_has_no_hidden_defaults() -> None:
    recipe = Recipe(name="x", model="m")
    assert (recipe.quantize, recipe.build, recipe.bench.latency, recipe.bench.divergence) == (None, None, None, None)


def test_the_commands(run_qtk, first_run, tmp_path) -> None:
    refused = run_qtk("run", first_run / "recipe.yaml", "-o", first_run)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    report = run_qtk("report", first_run, "-o", tmp_path / "report", "--title", "Ours", "--json")
    assert report.returncode == 0, report.stderr
    assert Path(json.loads(report.stdout)["report"]).read_text().startswith("# Ours\n")
    inspected = json.loads(run_qtk("inspect", first_run, "--json").stdout)
    assert inspected["kind"] == "run"
    assert [step["step"] for step in inspected["facts"]["steps"]] == ALL
    assert {step["status"] for step in inspected["facts"]["steps"]} == {"ok"}


def test_what_the_steps_left_is_recognized(first_run) -> None:
    for name, kind in (("quantized", "model"), ("engine", "engine"), ("latency", "result")):
        assert inspect_directory(first_run / name).kind == kind
    stored = inspect_directory(first_run / "quantized").facts["quantization"]["linears"]
    assert [entry["count"] for entry in stored] == [21]
    assert inspect_directory(first_run.parent / "adapter").facts["rank"] == 4
