"""Progress: silent when short, plain lines in a pipe, a bar on a terminal, nothing on stdout, nothing with --quiet."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qtk.progress import Pace, Progress, note, silence_progress, warn, warnings_since, warnings_so_far

AT_ONCE = Pace(silent=-1.0, between_lines=0.0)

SCRIPT = """
import sys, time
from qtk.progress import Pace, Progress
with Progress("quantize", total=4, unit="block", pace=Pace(silent=0.05, between_lines=0.0)) as bar:
    for layer in range(4):
        time.sleep(0.06)
        bar.advance(1, f"error {layer}")
print("the result")
"""


def test_short_work_says_nothing(capfd) -> None:
    with Progress("merge", total=3, unit="tensor") as bar:
        for _ in range(3):
            bar.advance()
    assert capfd.readouterr() == ("", "")


def test_plain_lines_with_an_estimate_in_a_pipe() -> None:
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert result.stdout == "the result\n"
    # On a busy machine the timer's line may come between two blocks, so a block can have two lines.
    lines = {line.split(",")[0]: line for line in result.stderr.splitlines() if "so far" not in line}
    assert list(lines) == [f"quantize: {block}/4 block" for block in (1, 2, 3, 4)]
    assert "s left; error 1" in lines["quantize: 2/4 block"]


def test_a_bar_with_an_estimate_on_a_terminal() -> None:
    main_end, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            piece = os.read(main_end, 4096)
        except OSError:  # the other end was closed
            break
        if not piece:
            break
        shown += piece
    os.close(main_end)
    assert process.communicate()[0] == b"the result\n"
    text = shown.decode()
    assert "quantize" in text
    assert "ETA" in text
    assert "4/4" in text


def test_a_long_first_unit_is_announced_again_and_again(capfd) -> None:
    """Each time after twice as long: a block of a large model takes half an hour."""
    shown = ""
    with Progress("quantize", total=4, unit="block", pace=Pace(silent=0.0, between_lines=0.01)):
        deadline = time.monotonic() + 30
        while shown.count("\n") < 3 and time.monotonic() < deadline:  # a line may come in two writes
            time.sleep(0.01)
            shown += capfd.readouterr().err
    lines = shown.splitlines()
    assert len(lines) >= 3
    assert all(line.startswith("quantize: ") and line.endswith(" s so far") for line in lines)
    capfd.readouterr()
    time.sleep(0.05)
    assert capfd.readouterr().err == ""


def test_lines_come_at_intervals_and_count_without_a_total(capfd) -> None:
    with Progress("latency", total=None, unit="calls", pace=AT_ONCE) as bar:
        bar.advance(3, "64/32")
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("latency: 3 calls, ")
    assert err.endswith("; 64/32\n")


def test_a_warning_is_printed_and_kept_once(capfd) -> None:
    start = warnings_so_far()
    for text in ("a", "b", "a"):
        warn(text)
    assert warnings_since(start) == ["a", "b"]
    assert capfd.readouterr().err == "WARNING: a\nWARNING: b\nWARNING: a\n"


def test_quiet_silences_everything(capfd) -> None:
    try:
        silence_progress()
        with Progress("quantize", total=1, pace=AT_ONCE) as bar:
            bar.advance()
        note("a fact")
    finally:
        silence_progress(False)
    assert capfd.readouterr() == ("", "")
    note("a fact")
    assert capfd.readouterr() == ("", "a fact\n")


@pytest.mark.parametrize("quiet", [False, True])
def test_the_option_of_the_command_line(run_qtk, tiny, tmp_path: Path, quiet: bool) -> None:
    words = ["quantize", tiny(), "-o", tmp_path / "out", "--group-size", 32, "--samples", 2, "--seq-len", 16]
    result = run_qtk(*(["--quiet"] if quiet else []), *words)
    assert result.returncode == 0, result.stderr
    assert ("WARNING: 32 calibration tokens" in result.stderr) != quiet
