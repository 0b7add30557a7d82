"""What an earlier command left unfinished is continued, refused or removed with a sentence; never in silence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qtk.bounded.files import file_state, require_unchanged
from qtk.checkpoint.begun import BegunWork, UnfinishedWork
from qtk.checkpoint.manifest import MANIFEST_NAME
from qtk.checkpoint.staging import Resumption, partial_path, remove_partial, staged_directory
from qtk.errors import InputError

FACTS = {"--seed": 0, "model": "m"}


def resumption(wanted: bool = False, **changes: object) -> Resumption:
    def unfinished(partial: Path) -> UnfinishedWork | None:
        begun, done = BegunWork.read(partial / "begun.json"), sorted(partial.glob("part-*"))
        return UnfinishedWork(kind="toy", begun=begun, done=len(done)) if begun and done else None

    return Resumption(wanted, {**FACTS, **changes}, unfinished)


def left_by_a_stopped_command(out: Path, parts: int = 2) -> Path:
    with pytest.raises(RuntimeError), staged_directory(out, resumption=resumption()) as work:
        BegunWork.now(FACTS, total=5, unit="part").write(work / "begun.json")
        for number in range(parts):
            (work / f"part-{number}").touch()
        raise RuntimeError("stopped")
    return partial_path(out)


def killed(out: Path, *, complete: bool = False) -> Path:
    """What a process that was killed outright leaves: the unfinished directory, and its lock that nobody holds."""
    name = MANIFEST_NAME if complete else "half"
    script = (
        "import os, sys, pathlib\nfrom qtk.checkpoint.staging import staged_directory\n"
        "with staged_directory(pathlib.Path(sys.argv[1])) as work:\n    (work / sys.argv[2]).touch()\n    os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script, str(out), name], check=False)
    assert (partial_path(out) / name).exists()
    return partial_path(out)


def test_work_that_can_be_resumed_is_refused_until_the_user_says_which(tmp_path, capfd) -> None:
    partial = left_by_a_stopped_command(tmp_path / "out")
    with pytest.raises(InputError) as caught, staged_directory(tmp_path / "out", resumption=resumption()):
        pass
    said = str(caught.value)
    assert "2 of 5 parts done, begun 2" in said
    assert "--resume continues it" in said
    assert "--overwrite" in said
    assert (partial / "part-1").exists()
    with staged_directory(tmp_path / "out", resumption=resumption(wanted=True)) as work:
        assert (work / "part-1").exists()
    assert capfd.readouterr().err == ""


def test_work_on_other_terms_names_them_and_is_kept(tmp_path) -> None:
    partial = left_by_a_stopped_command(tmp_path / "out")
    for wanted in (True, False):
        with (
            pytest.raises(InputError, match="begun with another --seed, so this command cannot continue it"),
            staged_directory(tmp_path / "out", resumption=resumption(wanted, **{"--seed": 1})),
        ):
            pass
    assert (partial / "part-1").exists()


def test_overwrite_starts_again_and_says_what_is_removed(tmp_path, capfd) -> None:
    left_by_a_stopped_command(tmp_path / "out")
    with staged_directory(tmp_path / "out", overwrite=True, resumption=resumption()) as work:
        assert list(work.iterdir()) == []
    assert "2 of 5 parts done" in capfd.readouterr().err


@pytest.mark.parametrize("resumable", [True, False])
def test_the_remains_of_a_killed_command_are_removed_with_a_note(tmp_path, capfd, resumable: bool) -> None:
    killed(tmp_path / "out")
    with staged_directory(tmp_path / "out", resumption=resumption() if resumable else None) as work:
        assert list(work.iterdir()) == []
    assert "nothing in it can be continued: starting again" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_complete_directory_that_only_lacks_its_name_is_not_thrown_away(tmp_path, capfd) -> None:
    partial = killed(tmp_path / "out", complete=True)
    for options in ({}, {"resumption": resumption(wanted=True)}):
        with pytest.raises(InputError, match=r"is complete.*`mv "), staged_directory(tmp_path / "out", **options):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [partial.name]  # so that `mv` leaves nothing behind
    with staged_directory(tmp_path / "out", overwrite=True):
        pass
    assert "the complete output of an earlier command" in capfd.readouterr().err


AT_A_CALL = """
import os, pathlib, sys
from qtk.checkpoint.manifest import MANIFEST_NAME
from qtk.checkpoint.staging import staged_directory
from qtk.errors import InputError
out = pathlib.Path(sys.argv[1])
def hook(event, arguments):
    {hook}
sys.addaudithook(hook)
try:
    with staged_directory(out) as work:
        (work / MANIFEST_NAME).write_text("new")
except InputError as error:
    print(error)
"""


def at_a_call(out: Path, hook: str) -> str:
    """What a command says that writes `out`, where `hook` is done before the system's calls."""
    script = AT_A_CALL.format(hook=hook)
    return subprocess.run([sys.executable, "-c", script, str(out)], capture_output=True, text=True).stdout


def test_a_command_that_is_killed_behind_the_rename_leaves_its_output_alone(tmp_path) -> None:
    at_a_call(
        tmp_path / "out", "if event == 'open' and str(arguments[0]) == str(out.parent) and out.exists(): os._exit(9)"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_another_command_finished_before_the_lock_is_not_replaced(tmp_path) -> None:
    said = at_a_call(
        tmp_path / "out",
        "if event == 'fcntl.flock' and not out.exists(): out.mkdir(); (out / MANIFEST_NAME).write_text('theirs')",
    )
    assert "exists already" in said
    assert (tmp_path / "out" / MANIFEST_NAME).read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_appears_under_the_name_meanwhile_is_not_replaced(tmp_path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="appeared while this command ran"), staged_directory(out) as work:
        (work / MANIFEST_NAME).write_text("ours")
        out.mkdir()
        (out / "mine").touch()
    assert (out / "mine").exists()
    assert (partial_path(out) / MANIFEST_NAME).read_text() == "ours"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.partial"]


def test_a_directory_that_was_removed_meanwhile_is_named(tmp_path) -> None:
    with pytest.raises(InputError, match=r"out\.partial was removed"), staged_directory(tmp_path / "out") as work:
        work.rmdir()
        (work / "file").write_text("")
    with pytest.raises(InputError, match=r"out\.partial was removed"), staged_directory(tmp_path / "out") as work:
        work.rmdir()
    assert list(tmp_path.iterdir()) == []


def test_a_run_says_why_it_removes_what_is_unfinished(tmp_path, capfd) -> None:
    partial = left_by_a_stopped_command(tmp_path / "out")
    remove_partial(tmp_path / "out", "it was begun with other options")
    assert "is removed: it was begun with other options" in capfd.readouterr().err
    assert not partial.exists()


def test_an_interrupt_of_resumable_work_says_how_to_go_on(tmp_path) -> None:
    with (
        pytest.raises(KeyboardInterrupt) as caught,
        staged_directory(tmp_path / "out", resumption=resumption()),
    ):
        raise KeyboardInterrupt
    assert "--resume" in caught.value.args[0]


def test_what_was_made_of_an_input_that_changed_is_not_kept(tmp_path) -> None:
    """It could not be resumed: the model that it was begun with is not there any more."""
    with pytest.raises(InputError), staged_directory(tmp_path / "out", resumption=resumption()) as work:
        BegunWork.now(FACTS, total=5, unit="part").write(work / "begun.json")
        (work / "part-0").touch()
        source = tmp_path / "source"
        source.write_text("before")
        states = {source: file_state(source)}
        source.write_text("afterwards")
        require_unchanged(states)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
