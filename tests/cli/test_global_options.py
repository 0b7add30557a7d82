"""What stands before a command may stand after it; help and version are commands too; a bug names a line that works."""

from __future__ import annotations

import json
import re
import shlex

import click
import pytest

import qtk
from qtk.cli.bench import SUBCOMMANDS
from qtk.cli.main import COMMANDS, cli, main
from qtk.progress import Pace, Progress, note

EVERY = [*((name,) for name in COMMANDS if name != "bench"), *(("bench", name) for name in SUBCOMMANDS)]


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_version_after_every_command(run_qtk, words: tuple[str, ...]) -> None:
    done = run_qtk(*words, "--version")
    assert (done.returncode, done.stdout) == (0, f"qtk, version {qtk.__version__}\n")


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_quiet_and_debug_are_taken_after_every_command(run_qtk, words: tuple[str, ...]) -> None:
    for option in ("-q", "--quiet", "--debug"):
        assert run_qtk(*words, option, "--help").returncode == 0


def test_quiet_after_the_command_is_quiet(run_qtk, monkeypatch) -> None:
    def speak() -> list[object]:
        note("something to say")
        with Progress("work", 1, "step", Pace(0, 0)) as progress:
            progress.advance()
        return []

    monkeypatch.setattr("qtk.targets.gpu.gpu_profiles", speak)
    assert "something to say" in run_qtk("gpus").stderr
    for words in (("-q", "gpus"), ("gpus", "-q"), ("gpus", "--json", "--quiet")):
        assert run_qtk(*words).stderr == ""


def test_a_value_is_not_taken_for_an_option(run_qtk, tmp_path) -> None:
    done = run_qtk("generate", tmp_path, "--prompt", "-q")
    assert "is not an engine directory" in done.stderr, "the prompt is -q"


def test_a_bug_names_a_command_line_that_works(monkeypatch, capsys) -> None:
    def fail() -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("qtk.targets.gpu.gpu_profiles", fail)
    assert main(["list", "gpus"]) == 1
    told = re.search(r"what this prints: qtk (.*)$", capsys.readouterr().err, re.M)
    assert told is not None
    assert main(shlex.split(told.group(1))) == 1
    assert "Traceback" in capsys.readouterr().err
    assert main(["list", "gpus", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_version_and_help_are_commands(run_qtk) -> None:
    assert run_qtk("version").stdout == run_qtk("--version").stdout
    assert run_qtk("help").stdout == run_qtk("--help").stdout
    for words in (("quantize",), ("bench",), ("bench", "latency")):
        assert run_qtk("help", *words).stdout == run_qtk(*words, "--help").stdout
    wrong = run_qtk("help", "quantise")
    assert wrong.returncode == 2
    assert "Did you mean quantize" in wrong.stderr
    assert "has no commands of its own" in run_qtk("help", "gpus", "x").stderr


ENVELOPE = ["schema_version", "qtk_version", "machine", "command"]


@pytest.mark.parametrize(
    ("words", "command"), [(("gpus",), "gpus"), (("list", "containers"), "list"), (("version",), "version")]
)
def test_every_json_object_begins_alike(run_qtk, words: tuple[str, ...], command: str) -> None:
    found = json.loads(run_qtk(*words, "--json").stdout)
    assert list(found)[:4] == ENVELOPE
    assert (found["schema_version"], found["qtk_version"], found["command"]) == (1, qtk.__version__, command)
    assert {"processor", "cores", "memory_bytes", "gpus"} <= found["machine"].keys()


@pytest.mark.parametrize(
    ("words", "code", "command", "said"),
    [
        (("verify", "nope"), 2, "verify", "nope does not exist"),
        (("bench", "compare", "a", "b"), 2, "bench compare", "cannot be read"),
        (("gpus", "--jsn"), 2, "gpus", "No such option"),
        (("quantize",), 2, "quantize", "Missing argument 'MODEL'"),
        (("-q", "nothing"), 2, "", "No such command 'nothing'"),
    ],
)
def test_an_error_is_json_as_well(run_qtk, words, code: int, command: str, said: str) -> None:
    done = run_qtk(*words, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["exit_code"], found["command"]) == (code, code, command)
    assert list(found)[:4] == ENVELOPE
    assert said in found["error"]
    assert said in done.stderr


def test_a_failed_check_prints_its_result_once(run_qtk, tiny) -> None:
    done = run_qtk("plan", tiny(), "--gpu", "a10", "--backend", "tensorrt-edgellm", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["refusals"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("quantize", "m", "--dataset", "x"), "Calibration text is --calibration."),
        (("quantize", "m", "--scheme=W4A16"), "W4A16 is --bits 4"),
        (("quantize", "m", "--desc-act"), "never reorders columns"),
        (("quantize", "m", "--iters", "200"), "--effort fast, default or best"),
        (("quantize", "m", "--ignore", "lm_head"), "--override 'PATTERN=skip'"),
        (("quantize", "--model", "m"), "The model is an argument without a name."),
        (("quantize", "m", "--tp", "2"), "qtk build-engine --tp"),
        (("bench", "divergence", "m", "--samples", "3"), "Rows of each text are --rows."),
        (("bench", "accuracy", "m", "--tasks", "x"), "qtk list suites"),
        (("gpus", "--jsn"), "Did you mean"),
    ],
)
def test_options_of_other_tools_are_answered_with_their_name_here(run_qtk, words: tuple[str, ...], said: str) -> None:
    done = run_qtk(*words)
    assert done.returncode == 2
    assert said in done.stderr


def test_no_answer_is_for_an_option_that_exists() -> None:
    from qtk.cli.peer_options import answer

    names = {(" ".join(words), option) for words in EVERY for option in options_of(words)}
    own = {
        ("quantize", "--verbose"),
        ("bench latency", "--model"),
        ("bench accuracy", "--model"),
    }  # other commands lack them
    assert [pair for pair in names - own if answer(*pair) is not None] == []


def options_of(words: tuple[str, ...]) -> list[str]:
    command: click.Command = cli
    for word in words:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    return [name for option in command.params for name in option.opts]


def test_an_engine_without_windows_does_not_list_its_layers(run_qtk, tiny, tmp_path) -> None:
    words = ("--max-input-len", "32", "--max-output-len", "8", "--json")
    built = json.loads(run_qtk("build-engine", tiny(), "-o", tmp_path / "engine", *words).stdout)
    assert (built["command"], built["windows"]) == ("build-engine", None)
    windowed = run_qtk("build-engine", tiny("mistral-window"), "-o", tmp_path / "windowed", *words)
    assert 16 in json.loads(windowed.stdout)["windows"]
    generated = run_qtk("generate", tmp_path / "engine", "--prompt", "a", "--max-new-tokens", "2", "--json")
    assert generated.returncode != 0 or json.loads(generated.stdout)["command"] == "generate"
