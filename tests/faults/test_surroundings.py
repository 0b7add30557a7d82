"""Odd surroundings: closed streams, tiny limits, other languages, names that are not text, another user, two at once."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults.commands import COMMANDS, left_behind
from faults.conftest import Workshop

ROOT = Path(__file__).resolve().parents[2]


def qtk(*words: object, **settings: object) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    command = [sys.executable, "-m", "qtk", *(word if isinstance(word, bytes) else str(word) for word in words)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **settings.pop("env", {})}  # type: ignore[dict-item]
    return subprocess.run(
        command, **{"capture_output": True, "timeout": 120, "env": env, "errors": "replace", **settings}
    )  # type: ignore[call-overload]


def clean(done: subprocess.CompletedProcess[str], code: int) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "a bug:" not in done.stderr


def limited(kind: int, amount: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (amount, amount))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_closed_stream_is_nobodys_loss(broken: Workshop, run_qtk, number: int) -> None:
    done = qtk(*COMMANDS["merge"](broken, broken.out), preexec_fn=lambda: os.close(number), stdin=None)
    assert done.returncode == 0, done.stderr
    assert (broken.out / "qtk-manifest.json").is_file()
    clean(run_qtk("verify", broken.out), 0)


def test_a_full_stdout_says_that_the_result_is_written(broken: Workshop) -> None:
    with open("/dev/full", "w") as full:
        done = qtk(*COMMANDS["merge"](broken, broken.out), capture_output=False, stdout=full, stderr=subprocess.PIPE)
    clean(done, 4)
    assert "What the command prints cannot be written" in done.stderr
    assert (broken.out / "qtk-manifest.json").is_file()


@pytest.mark.parametrize(
    ("kind", "amount", "phrase"),
    [
        (resource.RLIMIT_FSIZE, 20_000, "ulimit -f"),
        (resource.RLIMIT_AS, 400 << 20, "memory"),
    ],
    ids=["size of files", "memory"],
)
def test_a_tiny_limit_is_the_machines_lack(broken: Workshop, kind: int, amount: int, phrase: str) -> None:
    done = qtk(*COMMANDS["merge"](broken, broken.out), preexec_fn=limited(kind, amount))
    clean(done, 4)
    assert phrase in done.stderr
    assert not broken.out.exists()


@pytest.mark.parametrize("amount", [3, 5, 7, 9, 12])
def test_so_few_open_files_that_nothing_starts(amount: int) -> None:
    """Python itself, or qtk, says so; nobody is told that all is well."""
    done = qtk("version", preexec_fn=limited(resource.RLIMIT_NOFILE, amount))
    assert (done.returncode == 0) == ("qtk" in done.stdout), done


def test_names_in_other_languages(broken: Workshop) -> None:
    out = broken.root / "Модель «ü» 模型"
    clean(qtk(*COMMANDS["merge"](broken, out), env={"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"}), 0)
    for locale in ({"LC_ALL": "C"}, {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"}):
        clean(qtk("verify", out, env=locale), 0)
    said = qtk("generate", broken.e, "--prompt", "Привет", "--max-new-tokens", 2, env={"LC_ALL": "C"})
    clean(said, 0)


def test_a_locale_without_our_letters(broken: Workshop) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    done = qtk("generate", broken.e, "--prompt", "Привет", "--max-new-tokens", 2, env=ascii_only)
    clean(done, 2)
    assert "LC_ALL=C.UTF-8" in done.stderr


def test_a_name_that_is_not_text(broken: Workshop) -> None:
    done = qtk("merge", broken.m, broken.a, "--any-base", "-o", os.fsencode(broken.root) + b"/out\xff")
    clean(done, 2)
    assert "\\xff is not UTF-8" in done.stderr
    odd = broken.root / os.fsdecode(b"dir\xff")
    odd.mkdir()
    done = qtk("merge", broken.m, broken.a, "--any-base", "-o", "out", cwd=odd)
    clean(done, 2)
    assert list(odd.iterdir()) == []


def test_a_link_that_leads_to_itself(broken: Workshop, run_qtk) -> None:
    (broken.root / "loop").symlink_to("loop")
    for words in (("merge", broken.root / "loop", broken.a, "-o", broken.out), ("verify", broken.root / "loop")):
        clean(run_qtk(*words), 2)
    clean(run_qtk("merge", broken.m, broken.a, "--any-base", "-o", broken.root / "loop" / "out"), 2)


@pytest.mark.parametrize("words", [("verify", "."), ("doctor",), ("merge", "/nowhere", "/nothing", "-o", "out")])
def test_a_working_directory_that_was_removed(tmp_path, words: tuple[str, ...]) -> None:
    script = f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; exec {sys.executable} -m qtk {' '.join(words)}"
    done = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    clean(done, 2)
    assert "working directory was removed" in done.stderr


def test_what_is_closed_is_told(broken: Workshop, confined) -> None:
    own, closed = broken.root / "own", broken.root / "closed"
    own.mkdir()
    closed.mkdir(mode=0o500)
    words = ("merge", broken.m, broken.a, "--any-base", "-o")
    refused = confined.run(*words, closed / "out", unprivileged=True)
    assert refused.clean, refused.said
    assert refused.code == 2
    assert "Permission denied" in refused.err
    assert str(closed) in refused.err
    done = confined.run(*words, own / "out", unprivileged=True)
    assert done.code == 0, done.said
    for closed_file in (broken.m / "config.json", broken.m / "model.safetensors", broken.a / "adapter_config.json"):
        closed_file.chmod(0)
        unreadable = confined.run(*words, own / "again", unprivileged=True)
        assert unreadable.clean, unreadable.said
        assert unreadable.code == 2
        assert closed_file.name in unreadable.err
        assert not (own / "again").exists()
        closed_file.chmod(0o644)


def test_two_processes_with_one_output(broken: Workshop, run_qtk) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "qtk", *map(str, COMMANDS["merge"](broken, broken.out))]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    loser = next(text for process, text in zip(both, said, strict=True) if process.returncode == 2)
    assert "right now" in loser or "exists already" in loser
    clean(run_qtk("verify", broken.out), 0)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "run"])  # its steps are these commands
def test_an_output_that_another_process_writes_is_left_to_it(workshop, tmp_path, confined, name: str) -> None:
    out = tmp_path / "out"
    with (tmp_path / ".out.qtk-lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = confined.run(*COMMANDS[name](workshop, out))
    assert outcome.clean, outcome.said
    assert outcome.code == 2
    assert f"Another qtk command is writing {out} right now" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == [".out.qtk-lock"]


@contextmanager
def stopped_at(file: Path, *words: object) -> Iterator[subprocess.Popen[str]]:
    """A command in a process of its own, stopped as soon as it has written `file`."""
    command = [sys.executable, "-m", "qtk", *map(str, words)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            while not file.exists() and process.poll() is None:
                time.sleep(0.002)
            process.send_signal(signal.SIGSTOP)
            yield process
        finally:
            process.kill()


_GRID = ("--grid", "build.max_batch_size=1")
_GROWING = {"run": ("qtk-run.json", ()), "sweep": ("max-batch-size-1/qtk-run.json", _GRID)}


@pytest.mark.parametrize("name", _GROWING)
def test_a_directory_in_which_another_process_works_is_left_to_it(broken: Workshop, confined, name: str) -> None:
    record, grid = _GROWING[name]
    out = broken.root / "own" / "out"
    words = (name, broken.root / "recipe.yaml", "-o", out, *grid)
    with stopped_at(out / record, *words) as first:
        for more in ((), ("--resume",), ("--overwrite",)):
            second = confined.run(*words, *more)
            assert second.clean, second.said
            assert second.code == 2
            assert f"Another qtk command is writing {out} right now" in second.err
        if name == "sweep":
            inside = out / "max-batch-size-1"
            one = confined.run("run", broken.root / "recipe.yaml", "-o", inside, "--resume")
            assert f"Another qtk command is writing {inside} right now" in one.err
        first.send_signal(signal.SIGCONT)
        said = first.communicate(timeout=120)[1]
    assert first.returncode == 0, said
    assert confined.run("verify", out).code == 0
    assert left_behind(out) == []


def test_a_killed_process_holds_nothing(broken: Workshop, confined) -> None:
    out = broken.root / "own" / "out"
    words = ("run", broken.root / "recipe.yaml", "-o", out)
    with stopped_at(out / "qtk-run.json", *words) as first:
        first.kill()
        first.wait()
    assert left_behind(out) == []
    again = confined.run(*words, "--resume", seconds=60)
    assert again.code == 0, again.said
    assert left_behind(out) == []


def test_a_refused_run_leaves_no_directory(broken: Workshop, run_qtk) -> None:
    broken.m.rename(broken.root / "elsewhere")
    clean(run_qtk("run", broken.root / "recipe.yaml", "-o", broken.root / "new" / "out"), 2)
    assert not (broken.root / "new").exists()
