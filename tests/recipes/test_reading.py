"""How recipes are put together: extends, null, variables, --set, whose paths are whose, and what is said of mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from qtk.cli.known_names import complete_setting, names_of
from qtk.errors import InputError
from qtk.recipes.json_schema import SCHEMA_NAME, recipe_schema
from qtk.recipes.reading import ResolvedRecipe, find_recipe, resolve_recipe
from qtk.recipes.recipe_text import recipe_yaml
from qtk.recipes.schema import RECIPE_COPY, RecipeText
from qtk.recipes.settings import keys
from qtk.shipped import shipped_directory, shipped_names

BASE = """
variables: {gpu: a10, rows: 8, text: ./data/rows.jsonl, shapes: [16/8]}
name: base
model: ./model
adapters: [./adapter, organisation/adapter]
quantize: {gpu: "${gpu}", samples: "${rows}", calibration: "${text}", override: [lm_head=skip]}
build: {gpu: "${gpu}", float_engine: false}
bench: {latency: {shapes: 16/8, runs: 3}, divergence: {rows: 4}}
gates: [{metric: kl, at_most: 0.1, text: "${shapes}"}]
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    text = BASE.replace(', text: "${shapes}"', "").replace(", shapes: [16/8]", "")
    return written(tmp_path / "shared" / "base.yaml", text)


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def resolved(tmp_path: Path, text: str, *settings: str) -> ResolvedRecipe:
    return resolve_recipe(written(tmp_path / "own" / "recipe.yaml", text), settings)


def complaint(tmp_path: Path, text: str, *settings: str) -> str:
    with pytest.raises(InputError) as caught:
        resolved(tmp_path, text, *settings)
    return str(caught.value)


def test_mappings_are_merged_and_all_else_is_replaced(tmp_path: Path, base: Path) -> None:
    text = "{extends: ../shared/base.yaml, name: own, adapters: [./mine], bench: {latency: {runs: 5}}}"
    recipe = resolved(tmp_path, text).recipe
    assert (recipe.name, recipe.model, recipe.adapters) == ("own", "../shared/model", ("./mine",))
    assert recipe.bench.latency is not None
    assert (recipe.bench.latency.shapes, recipe.bench.latency.runs) == ("16/8", 5)
    assert recipe.bench.divergence is not None


def test_null_takes_a_stage_or_a_setting_away(tmp_path: Path, base: Path) -> None:
    text = "{extends: ../shared/base.yaml, bench: {divergence: null, latency: {runs: null}}, adapters: null}"
    recipe = resolved(tmp_path, text, "quantize.samples=null").recipe
    assert (recipe.bench.divergence, recipe.adapters) == (None, ())
    assert recipe.bench.latency is not None
    assert recipe.quantize is not None
    assert (recipe.bench.latency.runs, recipe.quantize.samples) == (5, 128)


def test_a_chain_is_followed_and_a_circle_named(tmp_path: Path, base: Path) -> None:
    written(tmp_path / "shared" / "middle.yaml", "{extends: base.yaml, quantize: {bits: 8}}")
    recipe = resolved(tmp_path, "{extends: ../shared/middle.yaml, name: own}").recipe
    assert recipe.quantize is not None
    assert (recipe.quantize.bits, recipe.quantize.samples) == (8, 8)
    written(base, "extends: ../own/recipe.yaml")
    said = complaint(tmp_path, "{extends: ../shared/middle.yaml}")
    assert "circle: recipe.yaml extends middle.yaml extends base.yaml extends recipe.yaml" in said


def test_a_recipe_that_travels_with_qtk_is_extended_by_its_name(tmp_path: Path) -> None:
    found = resolved(tmp_path, "{extends: codefuse-deepseek-33b-a10, name: own}")
    assert found.recipe.adapters == ("./codefuse-adapter",), "beside the extending recipe"
    assert found.file.directory == tmp_path / "own"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("extends: smollm2-135", r"no recipe that travels with qtk has that name; did you mean smollm2-135m\?"),
        ("extends: ../nowhere.yaml", r"nowhere\.yaml is not a file"),
        ("extends: [a, b]", "the name or the path of one recipe"),
        ("variables: {on: 1}", "True is not a text in YAML"),
        ("variables: [a]", "a mapping from names to values is needed"),
        ("{name: x, model: '${modle}', variables: {model: m}}", r"no variable 'modle'; did you mean model\?"),
        ("{name: x, model: m, variables: {gpu: a10}}", r"variables\.gpu is used nowhere"),
        ("{name: x, model: '${a}', variables: {a: '${b}', b: '${a}'}}", "refers to itself: a -> b -> a"),
        ("{name: x, model: 'm/${a}', variables: {a: [1]}}", "the variable a is a list or mapping"),
        ("{name: x, model: 'm/${a', variables: {}}", r"\$\{ without a \}"),
        ("{name: x, model: m, quantize: {sample: 1}}", r"quantize\.sample: no such setting; did you mean samples\?"),
        ("{name: x, model: m, adapters: a}", r"adapters: A list is needed: \[a, b\] \(given: 'a'\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_put_together_is_said(tmp_path: Path, text: str, said: str) -> None:
    assert re.search(said, complaint(tmp_path, text))


def test_what_is_extended_has_to_be_a_recipe(tmp_path: Path) -> None:
    written(tmp_path / "own" / "list.yaml", "- a")
    assert "is not a recipe" in complaint(tmp_path, "extends: list.yaml")


def test_variables_keep_their_type_and_fill_texts(tmp_path: Path) -> None:
    text = """
variables: {bits: 8, place: here, both: "${place}-${bits}", list: [a/b, "${place}"], sure: true}
name: x-${both}-${sure}
model: m
adapters: ${list}
description: "$${place} is ${place}"
quantize: {bits: "${bits}", sym: "${sure}"}
"""
    recipe = resolved(tmp_path, text, "variables.place=there").recipe
    assert recipe.quantize is not None
    assert (recipe.name, recipe.quantize.bits, recipe.quantize.sym) == ("x-there-8-true", 8, True)
    assert recipe.adapters == ("a/b", "there")
    assert recipe.description == "${place} is there"


def test_an_inherited_path_begins_beside_the_file_that_says_it(tmp_path: Path, base: Path, monkeypatch) -> None:
    shell = tmp_path / "shell"
    shell.mkdir()
    monkeypatch.chdir(shell)
    text = "{extends: ../shared/base.yaml, bench: {divergence: {data: [./mine.txt, python-docs-english]}}}"
    found = resolved(tmp_path, text, "build.gpu=card.yaml", "bench.accuracy.suite=[own.yaml, humaneval]")
    recipe = found.recipe
    assert recipe.quantize is not None
    assert recipe.bench.divergence is not None
    assert recipe.build is not None
    assert recipe.bench.accuracy is not None
    assert recipe.quantize.calibration == "../shared/data/rows.jsonl", "a variable's path, where the variable stands"
    assert recipe.adapters == ("../shared/adapter", "organisation/adapter")
    assert recipe.bench.divergence.data == ("./mine.txt", "python-docs-english")
    assert (recipe.build.gpu, recipe.quantize.gpu) == ("../shell/card.yaml", "a10"), "--set: where it is typed"
    suites = recipe.bench.accuracy.accuracy_options(tmp_path / "own").suite
    assert suites == (str(tmp_path / "own" / "../shell/own.yaml"), "humaneval")
    assert found.content(tmp_path)["quantize"]["calibration"] == "./shared/data/rows.jsonl"


@pytest.mark.parametrize(
    ("setting", "place", "value"),
    [
        ("quantize.bits=8", "quantize.bits", 8),
        ("quantize.lm_head_bits=8", "quantize.lm_head_bits", "8"),
        ("quantize.override=[a=skip, 'b=bits:8']", "quantize.override", ["a=skip", "b=bits:8"]),
        ("quantize={bits: 8}", "quantize.samples", 8),
        ("description=INT4: smaller", "description", "INT4: smaller"),
        ("name=7", "name", "7"),
        ("adapters.1=./other", "adapters.1", "./other"),
        ("adapters.2=./third", "adapters.2", "./third"),
        ("gates.0.at_most=0.2", "gates.0.at_most", 0.2),
        ("gates.1={metric: size, at_most: 1}", "gates.1.metric", "size"),
        ("bench.accuracy.limit=5", "bench.accuracy.limit", 5),
        ("build.gpu=${gpu}", "build.gpu", "a10"),
    ],
)  # fmt: skip
def test_set_changes_one_value(base: Path, monkeypatch, setting: str, place: str, value: Any) -> None:
    monkeypatch.chdir(base.parent)
    found: Any = resolve_recipe(base, [setting]).content()
    for part in place.split("."):
        found = found[int(part) if part.isdigit() else part]
    assert found == value


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("quantise.bits=8", "no such setting; did you mean quantize?"),
        ("quantize.bit=8", "no such setting; did you mean bits?"),
        ("variables.gpuu=l4", "there is no variable 'gpuu'; did you mean gpu?"),
        ("quantize.bits", "write it as KEY=VALUE"),
        ("quantize..bits=1", "write it as KEY=VALUE"),
        ("gates.metric=kl", "say which entry, gates.0.metric"),
        ("name.first=x", "name has no settings below it"),
        ("quantize.0=x", "quantize is not a list"),
        ("quantize.bits=[4", "is not YAML"),
        ("adapters.9=x", "the list has 2 entries, so the next one is number 2"),
        ("quantize.bits=3", "3 bits are not supported; 4 and 8 are (given: 3) [--set quantize.bits=3]"),
        ("bench.latency.runs=many", "(given: 'many') [--set bench.latency.runs=many]"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(base: Path, setting: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve_recipe(base, [setting])
    assert said in str(caught.value)


def test_of_several_files_the_one_that_is_wrong_is_named(tmp_path: Path, base: Path) -> None:
    written(
        base, BASE.replace(', text: "${shapes}"', "").replace(", shapes: [16/8]", "").replace("rows: 4", "rows: many")
    )
    said = complaint(tmp_path, "{extends: ../shared/base.yaml, quantize: {bits: 5}}")
    assert re.search(r"quantize\.bits: .*\[recipe\.yaml\]", said)
    assert re.search(r"bench\.divergence\.rows: .*\[base\.yaml\]", said)


def test_the_run_s_copy_is_the_resolved_recipe(tmp_path: Path, tiny, run_qtk) -> None:
    written(tmp_path / "rows.txt", "def f(x):\n    return x\n" * 60)
    written(tmp_path / "base.yaml", f"{{name: base, model: {tiny()}, quantize: {{calibration: rows.txt}}}}")
    stage = "quantize: {group_size: 32, method: rtn, samples: '${n}'}"
    recipe = written(tmp_path / "recipe.yaml", f"extends: base.yaml\nvariables: {{n: 4}}\n{stage}\n")
    run = tmp_path / "runs" / "own"
    assert run_qtk("run", recipe, "-o", run, "--set", "variables.n=2", "--set", "name=own").returncode == 0
    copy = yaml.safe_load((run / RECIPE_COPY).read_text())
    assert (copy["name"], copy["quantize"]["samples"]) == ("own", 2)
    assert copy["quantize"]["calibration"] == "../../rows.txt", "paths begin in the run's directory"
    assert resolve_recipe(run / RECIPE_COPY).recipe.quantize == resolve_recipe(
        recipe, ["variables.n=2", f"quantize.calibration={tmp_path}/rows.txt"]
    ).recipe.quantize.model_copy(update={"calibration": "../../rows.txt"})  # type: ignore[union-attr]


def test_show_prints_what_run_would_do(base: Path, run_qtk) -> None:
    shown = run_qtk("recipe", "show", base, "--set", "quantize.bits=8")
    assert yaml.safe_load(shown.stdout) == resolve_recipe(base, ["quantize.bits=8"]).content()
    lines = run_qtk("recipe", "show", base, "--set", "quantize.bits=8", "--origins").stdout.splitlines()
    assert "  bits: 8  # --set quantize.bits=8" in lines
    assert "adapters: [./adapter, organisation/adapter]  # base.yaml" in lines
    told = json.loads(run_qtk("recipe", "show", base, "--json").stdout)
    assert (told["recipe"]["name"], told["origins"]["name"]) == ("base", "base.yaml")
    assert run_qtk("recipe", "show", "smollm3").returncode == 2


@pytest.mark.parametrize("name", shipped_names("recipes"))
def test_what_is_printed_reads_back(name: str) -> None:
    found = resolve_recipe(find_recipe(name))
    assert yaml.safe_load(recipe_yaml(found.content())) == found.content()


def test_the_schema_that_travels_with_the_recipes_is_current(run_qtk) -> None:
    printed = json.loads(run_qtk("recipe", "schema").stdout)
    stored = json.loads((shipped_directory("recipes") / SCHEMA_NAME).read_text())
    assert stored == printed, "recipes/recipe.schema.json is out of date: make docs"


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft7Validator:
    schema = recipe_schema(names_of)
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


@pytest.mark.parametrize("path", sorted(shipped_directory("recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_editors_accept_the_recipes_that_travel_with_qtk(validator, path: Path) -> None:
    text = path.read_text()
    assert text.startswith(f"# yaml-language-server: $schema={SCHEMA_NAME}\n")
    assert [error.message for error in validator.iter_errors(yaml.safe_load(text))] == []


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        (BASE, True),
        ("{extends: base.yaml, quantize: null, bench: {latency: {runs: null}}}", True),
        ("{name: a b}", False),
        ("{quantise: {}}", False),
        ("{quantize: {bits: four}}", False),
        ("{quantize: {method: gtpq}}", False),
        ("{gates: [{metric: 3}]}", False),
    ],
)
def test_editors_mark_what_is_wrong(validator, text: str, accepted: bool) -> None:
    assert validator.is_valid(yaml.safe_load(text)) is accepted


def test_every_setting_is_in_the_schema_with_its_description() -> None:
    schema = recipe_schema(names_of)
    for key, field in keys(RecipeText):
        section = schema
        *parents, last = [part for part in key.split(".") if not part.isdigit()]
        for part in parents:
            found = section["properties"][part]["anyOf"][0]
            found = found["items"]["anyOf"][0] if "items" in found else found
            section = schema["definitions"][found["$ref"].rpartition("/")[2]]
        assert section["properties"][last].get("description") == field.description, key
        assert field.description, key


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("quantize.gro", ["quantize.group_size="]),
        ("bench.latency.run", ["bench.latency.runs="]),
        ("gates.0.me", ["gates.0.metric="]),
        ("quantize.method=", ["gptq", "awq", "rtn", "auto"]),
        ("build.float_engine=f", ["false"]),
        ("quantize.group_size=1", ["128"]),
        ("build.gpu=a1", ["a10", "a100-40g", "a100-80g"]),
        ("nothing=", []),
    ],
)  # fmt: skip
def test_tab_completes_keys_and_values_of_set(typed: str, offered: list[str]) -> None:
    import click

    context = click.Context(click.Command("run"))
    items = complete_setting(context, click.Option(["--set"]), typed)
    assert [item.value.rpartition("=")[2] or item.value for item in items] == offered
