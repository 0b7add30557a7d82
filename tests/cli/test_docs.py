"""The documentation is true: commands exist, run and are all documented; links lead somewhere; docs/cli.md is current."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from support.pages import PAGES, ROOT, blocks, examples, parses

from qtk.cli.main import COMMANDS, cli

README = (ROOT / "README.md").read_text(encoding="utf-8")


def generator():
    spec = importlib.util.spec_from_file_location("generate_cli", ROOT / "docs" / "generate_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def all_commands() -> list[tuple[tuple[str, ...], click.Command]]:
    return list(generator().commands(cli, ("qtk",)))


def test_the_command_reference_is_current() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert text == generator().document(), "docs/cli.md is out of date: make docs"


ALL = {" ".join(path): command for path, command in all_commands()}
SHOWN = [line for command in ALL.values() for line in examples(command.help or "")]
SHOWN += [line for page in PAGES if page.name != "cli.md" for block in blocks(page) for line in examples(block)]


# Commands about qtk itself, which the reference lists.
ABOUT_QTK = ("qtk list", "qtk completion", "qtk help", "qtk version")


@pytest.mark.parametrize("name", ALL)
def test_every_command_is_in_the_readme_and_has_examples(name: str) -> None:
    if not isinstance(ALL[name], click.Group) and name not in ABOUT_QTK:
        assert name in README
    assert examples(ALL[name].help or "")


@pytest.mark.parametrize("line", dict.fromkeys(SHOWN))
def test_every_example_of_a_help_text_or_a_page_parses(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    parses(line)
    assert " is now " not in capsys.readouterr().err, "an old spelling"


def test_the_readme_s_chain_runs(run_qtk, tiny, tmp_path) -> None:
    """The commands of the README, as they stand there, on a tiny model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    (tmp_path / "BASE").symlink_to(tiny("llama"))
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny("llama")), LoraConfig(target_modules=["q_proj"]))
    torch.nn.init.normal_(next(p for n, p in peft.named_parameters() if "lora_B" in n), std=0.05)
    peft.save_pretrained(tmp_path / "ADAPTER")
    block = next(block for block in blocks(ROOT / "README.md") if "qtk merge" in block)
    lines = examples(block)
    chain = ("merge", "quantize", "build-engine", "latency", "divergence", "report")
    assert all(any(step in shlex.split(line)[1:3] for line in lines) for step in chain)
    # The tiny model's context is 512; everything else is said as in the README.
    smaller = {
        "quantize": ["--samples", "8", "--seq-len", "64"],
        "build-engine": ["--max-input-len", "256", "--max-output-len", "64"],
        "latency": ["--shapes", "4/2", "--runs", "1", "--seconds", "0"],
        "divergence": ["--rows", "2", "--seq-len", "64"],
    }
    for line in lines:
        words = shlex.split(line)[1:]
        more = next((options for name, options in smaller.items() if name in words[:2]), [])
        result = run_qtk(*words, *more, cwd=tmp_path)
        assert result.returncode == 0, f"{line}: {result.stderr}"
    report = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert all(f"## {part}" in report for part in ("Merge", "Quantization", "Latency", "Divergence"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for name in re.findall(r"`(?:python )?([a-z_]+/[\w./-]+\.(?:py|yaml|md))`", text):
        if not name.startswith("runs/"):
            assert (ROOT / name).exists() or (ROOT / "qtk" / name).exists(), f"{page.name} names {name}"


def test_the_makefile_s_targets_that_the_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for page in PAGES:
        named = set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", page.read_text(encoding="utf-8"), flags=re.M))
        assert {a or b for a, b in named} <= targets, page.name


@pytest.mark.parametrize(
    "package", ["tensorrt-llm", "auto-gptq", "optimum", "transformers", "torch", "onnx", "click", "pytest"]
)
def test_the_packages_that_were_asked_for_are_explained(package: str) -> None:
    rows = [page.read_text(encoding="utf-8") for page in PAGES]
    assert any(re.search(rf"^\| {re.escape(package)} \| .{{20,}}\|$", text, flags=re.M) for text in rows)


def test_help_lists_every_command(run_qtk) -> None:
    result = run_qtk("--help")
    assert result.returncode == 0, result.stderr
    for name, (_, text) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text[:30])}", result.stdout, flags=re.M)


@pytest.mark.parametrize(("shell", "mark"), [("bash", "complete "), ("zsh", "compdef"), ("fish", "complete ")])
def test_tab_completion(shell: str, mark: str) -> None:
    """What the README tells to put into the shell's start file defines a completion, and that one knows the commands."""
    qtk = Path(sys.executable).with_name("qtk")
    source = subprocess.run(
        [qtk], env={"_QTK_COMPLETE": f"{shell}_source", "PATH": "/bin"}, capture_output=True, text=True
    )
    assert mark in source.stdout
    if shell == "bash":
        env = {"_QTK_COMPLETE": "bash_complete", "COMP_WORDS": "qtk build-", "COMP_CWORD": "1", "PATH": "/bin"}
        assert "build-engine" in subprocess.run([qtk], env=env, capture_output=True, text=True).stdout


def test_a_mistyped_command_is_answered_with_the_nearest(run_qtk) -> None:
    result = run_qtk("quantise")
    assert result.returncode == 2
    assert "Did you mean quantize?" in result.stderr
