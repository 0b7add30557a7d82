"""What a shell completes: names from the registries, and nothing heavy is loaded for it."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.shell_completion import ShellComplete

from qtk.bench.accuracy.suites.suites import chosen_parts, suite_names
from qtk.cli.known_names import LISTED
from qtk.cli.main import cli
from qtk.quantization.formats.registry import FORMATS
from qtk.shipped import shipped_names
from qtk.targets.gpu import gpu_names
from qtk.targets.runtimes import RUNTIMES, engine_runtimes


def completed(*words: str) -> list[str]:
    """The words that complete the last of `words`; "FILE" where the shell is to complete files too."""
    *before, incomplete = words
    items = ShellComplete(cli, {}, "qtk", "_QTK_COMPLETE").get_completions(list(before), incomplete)
    return ["FILE" if item.type == "file" else str(item.value) for item in items]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("build-engine", "m", "--gpu", "a10"), ["a10", "a100-40g", "a100-80g", "FILE"]),
        (("build-engine", "m", "--backend", ""), ["auto", *engine_runtimes()]),
        (("quantize", "m", "--backend", ""), ["auto", *RUNTIMES]),
        (("quantize", "m", "--container", ""), ["auto", *FORMATS]),
        (("quantize", "m", "--group-size", ""), ["auto", "32", "64", "128"]),
        (("quantize", "m", "--method", "g"), ["gptq"]),
        (("quantize", "m", "--effort", "b"), ["best"]),
        (("quantize", "m", "--calibration", "py"), ["python-stdlib", "FILE"]),
        (("plan", "m", "--gpu", ""), ["all", *gpu_names(), "FILE"]),
        (("bench", "divergence", "m", "--data", "python-d"), ["python-docs-english", "FILE"]),
        (("bench", "accuracy", "m", "--suite", ""), [*suite_names(), "FILE"]),
        (("bench", "accuracy", "m", "--suite", "humaneval-x:java,p"), ["humaneval-x:java,python", "FILE"]),
        (("bench", "accuracy", "m", "--suite", "nlp:cop"), ["nlp:copa", "FILE"]),
        (("run", ""), [*shipped_names("recipes"), "FILE"]),
        (("list", "b"), ["backends"]),
        (("completion", "z"), ["zsh"]),
        (("ver",), ["verify", "version"]),
        (("bench", "le"), ["leaderboard"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_names_are_completed(words: tuple[str, ...], expected: list[str]) -> None:
    assert completed(*words) == expected


def test_the_parts_of_suites_are_those_that_can_be_scored() -> None:
    known = {it.name: it.parts for it in LISTED["suites"]()}
    for name in ("humaneval-x", "leaderboard", "nlp"):
        scored = [part.name for part in chosen_parts(name) if name != "nlp" or part.suite.name == "nlp"]
        assert list(known[name]) == scored


def test_completing_loads_nothing_heavy() -> None:
    lines = [
        "",
        "bu",
        "build-engine --gpu a",
        "quantize m --container ",
        "bench ",
        "bench accuracy m --suite hu",
        "run ",
    ]
    code = (
        "import sys\nfrom click.shell_completion import ShellComplete\nfrom qtk.cli.main import cli\n"
        f"for line in {lines!r}:\n"
        "    *before, last = line.split(' ')\n"
        "    assert ShellComplete(cli, {}, 'qtk', 'X').get_completions(before, last), line\n"
        "print([name for name in ('torch', 'numpy', 'onnx', 'onnxruntime', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_a_command_s_name_is_completed_without_importing_commands() -> None:
    code = (
        "import sys\nfrom click.shell_completion import ShellComplete\nfrom qtk.cli.main import cli\n"
        "ShellComplete(cli, {}, 'qtk', 'X').get_completions([], 'b')\nprint('pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_click_s(run_qtk, shell: str) -> None:
    done = run_qtk("completion", shell)
    assert done.returncode == 0, done.stderr
    assert f"_QTK_COMPLETE={shell}_complete" in done.stdout


@pytest.mark.parametrize("kind", LISTED)
def test_list_names_what_the_registries_hold(run_qtk, kind: str) -> None:
    import json

    found = json.loads(run_qtk("list", kind, "--json").stdout)[kind]
    assert [entry["name"] for entry in found] == [it.name for it in LISTED[kind]()]
    assert all(entry["meaning"] for entry in found)
    shown = run_qtk("list", kind).stdout
    assert all(entry["name"] in shown for entry in found)


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(click.BadParameter, match="suites"):
        cli.main(["list", "things"], standalone_mode=False)
