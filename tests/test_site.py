"""The pages: generated tables are current, the site's navigation is whole, messages and recipes in them exist, the image builds."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import tomllib

import pytest
import yaml
from support.pages import PAGES, ROOT, blocks, parses

from qtk.recipes.reading import read_recipe


def tables():
    spec = importlib.util.spec_from_file_location("generate_tables", ROOT / "docs" / "generate_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_the_pages_are_current() -> None:
    generator = tables()
    assert len(generator.pages()) >= 6
    for page in generator.pages():
        text = page.read_text(encoding="utf-8")
        assert generator.filled(text) == text, f"{page.name} is out of date: make docs"
        assert text.count("<!-- table: ") == text.count("<!-- end -->") == len(generator.REGION.findall(text)), (
            page.name
        )


def test_every_table_is_shown_and_every_container_named() -> None:
    from qtk.quantization.formats.registry import FORMATS

    generator, shown = tables(), "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in generator.TABLES if f"<!-- table: {name} -->" not in shown] == []
    assert set(generator.CONTAINERS) == set(FORMATS)


def test_a_figure_that_benchmarks_lost_is_missed() -> None:
    with pytest.raises(KeyError, match="no such column"):
        tables().benchmark("Merging, beside peft", "no such column")


def navigation(entries: object) -> list[str]:
    if isinstance(entries, str):
        return [entries]
    values = entries.values() if isinstance(entries, dict) else entries
    return [page for entry in values for page in navigation(entry)]  # type: ignore[attr-defined]


def test_the_navigation_names_every_page_once() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    named = navigation(site["nav"])
    assert sorted(named) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    assert site["strict"] is True


def literal_texts() -> str:
    """Every text in the package's code, one a line, with a mark where a value is put in; texts written in pieces are whole."""
    texts = []
    for path in (ROOT / "qtk").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_every_message_of_the_troubleshooting_page_is_one_of_ours() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^### `(.+)`$", page, flags=re.M)
    assert len(messages) >= 30
    texts = literal_texts()
    assert [message for message in messages if message not in texts] == []


def test_the_recipes_of_the_page_are_recipes(tmp_path) -> None:
    names = []
    for number, block in enumerate(blocks(ROOT / "docs" / "recipes.md", "yaml")):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block, encoding="utf-8")
        names.append(read_recipe(file).name)
    assert names == ["my-release", "our-coder"]


def test_the_commands_of_the_workflow_are_ours() -> None:
    """What the page on CI runs in a workflow is parsed like every other example."""
    workflow = yaml.safe_load(blocks(ROOT / "docs" / "ci.md", "yaml")[0])
    runs = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    commands = [line for line in runs if line.startswith("qtk ")]
    assert len(commands) >= 5
    for line in commands:
        parses(line)


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, rest) of each line of the Dockerfile."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip() and not line.startswith("#")]  # type: ignore[misc]


def test_the_image_copies_what_the_wheel_needs_and_does_not_run_as_root() -> None:
    steps = dockerfile()
    copied = {word for name, rest in steps if name == "COPY" for word in rest.split()[:-1]}
    assert all((ROOT / word).exists() for word in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"], *wheel["packages"]}
    assert copied >= needed | {name.split("/")[0] for name in wheel["force-include"]}
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{name}" for name in copied} <= set(kept)
    names = [name for name, _ in steps]
    assert names[0] == "FROM"
    assert max(i for i, name in enumerate(names) if name == "RUN") < names.index("USER") < names.index("ENTRYPOINT")
    assert dict(steps)["USER"] != "root"
    for rest in (rest for name, rest in steps if name == "RUN" and rest.startswith("pip")):
        assert shlex.split(rest)[:3] == ["pip", "install", "--no-cache-dir"]


def test_the_interpreters_that_are_named_are_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = [c.rsplit(" ", 1)[1] for c in project["classifiers"] if re.search(r"Python :: 3\.\d+$", c)]
    assert versions == ["3.11", "3.12", "3.13"]
    assert all(version in (ROOT / "docs" / "install.md").read_text(encoding="utf-8") for version in versions)
    assert f"python:{versions[1]}" in dict(dockerfile())["FROM"]


@pytest.mark.parametrize(
    ("settings", "environment"),
    [([], ".venv"), (["PYTHON=python3.12"], ".venv-python3.12"), (["PYTHON=python3.12", "VENV=own"], "own")],
)
def test_an_interpreter_that_is_named_has_an_environment_of_its_own(settings, environment) -> None:
    import os
    import subprocess

    plain = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "VENV", "MAKEFLAGS")}
    command = ["make", "--dry-run", "--always-make", "lint", *settings]
    lines = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True, check=True).stdout.splitlines()
    assert f"{environment}/bin/ruff check ." in lines
