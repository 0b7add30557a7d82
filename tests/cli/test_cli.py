"""The command line itself: options from the models, exit codes, one result on stdout."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import click
import pytest
from pydantic import BaseModel, ConfigDict, Field

import qtk
from qtk.adapters.options import MergeOptions
from qtk.bench.options import DivergenceOptions, LatencyOptions
from qtk.calibration.options import CalibrationOptions
from qtk.cli.main import main
from qtk.cli.options import build, gone_option, options_from, require_valid
from qtk.engines.options import BuildOptions
from qtk.errors import GateFailed, InputError, MachineError, listing
from qtk.quantization.options import QuantizeOptions

MODELS = [MergeOptions, QuantizeOptions, CalibrationOptions, BuildOptions, LatencyOptions, DivergenceOptions]


def parsed(model: type[BaseModel], *words: str) -> dict[str, Any]:
    """What a command with the model's options makes of the words."""
    found: dict[str, Any] = {}

    @click.command()
    @options_from(model)
    def command(**values: Any) -> None:
        found.update(values)

    command.main(list(words), standalone_mode=False)
    return found


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_without_options_the_model_s_defaults_are_in_force(model: type[BaseModel]) -> None:
    assert build(model, parsed(model)) == model()
    for name, field in model.model_fields.items():
        assert field.description, f"{model.__name__}.{name} has no description, so --help says nothing"


class _Every(BaseModel):
    """One field of each kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    count: int = Field(3, ge=1, description="d")
    share: float | None = Field(None, description="d")
    flag: bool = Field(True, description="d")
    sym: bool = Field(True, description="d", json_schema_extra={"off": "asym"})
    choice: Literal["a", "b"] = Field("a", description="d")
    several: tuple[float, ...] = Field((), description="d")
    size: int | Literal["auto"] = Field("auto", description="d")
    place: Path | None = Field(None, description="d")


def test_every_kind_of_field_becomes_an_option() -> None:
    line = "--count 5 --share 0.5 --no-flag --asym --choice b --several 1 --several 2.5 --size 64 --place x/y"
    words = shlex.split(line)
    assert build(_Every, parsed(_Every, *words)) == _Every(
        count=5, share=0.5, flag=False, sym=False, choice="b", several=(1, 2.5), size=64, place=Path("x/y")
    )
    with pytest.raises(click.BadParameter):
        parsed(_Every, "--choice", "c")


class _Renamed(BaseModel):
    """Fields that had other names before."""

    container: str = Field("auto", description="d", json_schema_extra={"was": "format"})
    chat_format: Literal["none", "model"] = Field(
        "none", description="d", json_schema_extra={"was": "prompt", "was_values": {"plain": "none", "chat": "model"}}
    )
    suites: tuple[str, ...] = Field((), description="d", json_schema_extra={"was": "suite"})
    keep: bool = Field(False, description="d", json_schema_extra={"was": "hold"})


@pytest.mark.parametrize(
    ("line", "expected", "said"),
    [
        ("", {}, ""),
        ("--format gguf", {"container": "gguf"}, "qtk: --format is now --container gguf."),
        ("--format=gguf", {"container": "gguf"}, "qtk: --format is now --container gguf."),
        ("--format gguf --container awq", {"container": "awq"}, "--format is now --container"),
        ("--prompt chat", {"chat_format": "model"}, "--prompt is now --chat-format model."),
        ("--suite a --suite b", {"suites": ("a", "b")}, "--suite is now --suites a --suites b."),
        ("--hold", {"keep": True}, "--hold is now --keep."),
    ],
)
def test_an_old_spelling_is_taken_and_stderr_names_the_new_one(
    capsys, line: str, expected: dict[str, Any], said: str
) -> None:
    assert build(_Renamed, parsed(_Renamed, *shlex.split(line))) == _Renamed(**expected)
    out, err = capsys.readouterr()
    assert said in err
    assert out == ""
    if not said:
        assert err == ""


def test_a_value_under_an_old_spelling_is_checked_like_any_other() -> None:
    with pytest.raises(click.BadParameter, match="'model'"):
        parsed(_Renamed, "--prompt", "codefuse")


@pytest.mark.parametrize("words", [["--old"], ["--old", "value"], ["--old=value"], ["--other", "x", "--old"]])
def test_an_option_that_is_gone_is_answered_with_what_replaced_it(words: list[str]) -> None:
    @click.command()
    @gone_option("--old", "Use --new none.")
    @click.option("--other")
    def command(other: str | None) -> None: ...

    with pytest.raises(click.UsageError, match=r"no option --old any more\. Use --new none\."):
        command.main(words, standalone_mode=False)
    assert "--old" not in command.get_help(click.Context(command))


def test_several_models_complain_together() -> None:
    with pytest.raises(InputError) as caught:
        require_valid({"count": 0, "bits": 5, "samples": -1}, _Every, QuantizeOptions, CalibrationOptions)
    assert all(name in str(caught.value) for name in ("--count", "--bits", "--samples"))


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InputError("the sentence"), 2, "qtk: the sentence"),
        (GateFailed("the sentence"), 3, "qtk: the sentence"),
        (MachineError("the sentence"), 4, "qtk: the sentence"),
        (KeyboardInterrupt(), 130, "qtk: Stopped."),
        (MemoryError(), 4, "Not enough memory"),
        (OSError(errno.ENOSPC, "x", "/disk/file"), 4, "The disk is full (/disk/file)"),
        (OSError(errno.ENOMEM, "x"), 4, "Not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), 4, "9 bytes"),
        (RuntimeError("shapes cannot be multiplied"), 1, "a bug: RuntimeError"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/a.txt/b"), 2, "/a.txt/b: Not a directory"),
        (
            BrokenPipeError(errno.EPIPE, "Broken pipe"),
            1,
            "a bug: _BrokenPipe: [Errno 32]",
        ),  # a helper's, stdout is well
        (KeyboardInterrupt("The sentence."), 130, "qtk: Stopped. The sentence."),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 2, "/root/x: Permission denied"),
        (ZeroDivisionError("oops"), 1, "a bug: ZeroDivisionError: oops"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_errors_become_a_sentence_and_an_exit_code(monkeypatch, capsys, error, code: int, text: str) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("qtk.targets.gpu.gpu_profiles", fail)
    assert main(["gpus"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err
    assert "Traceback" not in err
    assert main(["--debug", "gpus"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_wrong_words_are_usage_errors(capsys) -> None:
    assert main(["gpus", "--jsn"]) == 2
    assert "--json" in capsys.readouterr().err
    assert main(["quantize"]) == 2
    assert "MODEL" in capsys.readouterr().err
    assert main(["--version"]) == 0
    assert qtk.__version__ in capsys.readouterr().out


def test_long_lists_of_offenders_are_cut_and_counted() -> None:
    text = listing(range(30), limit=3)
    assert text == "  0\n  1\n  2\n  ... and 27 more"


@pytest.mark.parametrize("words", [["gpus"], ["gpus", "--json"]])
def test_a_closed_pipe_is_no_error(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run([sys.executable, "-m", "qtk", *words], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (result.returncode, result.stderr) == (0, "")


def test_doctor_finds_its_way_on_any_machine(run_qtk) -> None:
    table = run_qtk("doctor", env={"PATH": "/nowhere"})
    assert table.returncode == 0, table.stderr
    assert "qtk[" not in table.stdout
    assert "apt-get install g++" in table.stdout
    found = json.loads(run_qtk("doctor", "--json").stdout)
    assert found["machine"]["cores"] >= 1
    assert found["gflops"]["float32"] > 0
    parts = {part["name"]: part for part in found["parts"]}
    assert parts["peft"]["found"]
    assert all(part["get"] and part["purpose"] for part in parts.values())


def test_inspect_says_what_a_directory_is(run_qtk, tiny, tmp_path) -> None:
    found = json.loads(run_qtk("inspect", tiny("qwen2"), "--json").stdout)
    assert found["kind"] == "model"
    assert found["facts"]["architecture"] == "Qwen2ForCausalLM"
    assert found["facts"]["quantization"] is None
    assert found["facts"]["heads"] == {"query": 4, "key_value": 2, "size": 32}
    nothing = run_qtk("inspect", tmp_path)
    assert nothing.returncode == 2
    assert "neither a model (config.json), an adapter" in nothing.stderr
