"""Commands that are killed: what stands under the final name is whole, what was done is taken up, and nothing stays behind."""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.commands import COMMANDS, SLOW, contents, empty, left_behind, require_whole_or_absent
from faults.conftest import Workshop
from support.confined import Confined

FEW, MANY = 2, 50
MOMENTS = int(os.environ.get("QTK_TEST_KILLS", MANY))
SEED = int(os.environ.get("QTK_TEST_KILLS_SEED", 2))


def _killed(confined: Confined, w: Workshop, name: str, moments: int, seed: int) -> Counter[str]:
    """Kills a command at random moments and finishes its work. Returns how often what was found."""
    words, counts = COMMANDS[name], Counter[str]()
    whole, out = (
        empty(w.root / folder) / "out" for folder in ("whole", "killed")
    )  # with one name, which outputs repeat
    first = confined.run(*words(w, whole), seconds=240)
    assert first.code == 0, first.said
    expected, chooser = contents(whole), random.Random(seed)
    for moment in (chooser.uniform(0, first.seconds * 1.1) for _ in range(moments)):
        where = f"{name}, killed after {moment:.3f} s (seed {seed})"
        empty(out.parent)
        killed = confined.run(*words(w, out), seconds=moment, alone=True)
        assert killed.code in (0, 124), f"{where}: {killed.said}"
        assert killed.survivors == [], where
        counts["killed at work" if killed.code else "done before"] += 1
        counts[_settled(confined, w, name, out, expected, where)] += 1
    return counts


def _settled(confined: Confined, w: Workshop, name: str, out: Path, expected: dict[str, str], where: str) -> str:
    """Looks at what a killed command left, and finishes its work. Returns what there was to do."""
    require_whole_or_absent(confined, out, where)
    to_do = _finish(confined, w, name, out)
    assert confined.run("verify", out).code == 0, where
    assert contents(out) == expected, where
    assert left_behind(out) == [], where
    return to_do


def _finish(confined: Confined, w: Workshop, name: str, out: Path) -> str:
    """Does the command again as its messages say, until it is done. Returns what there was to do."""
    words = COMMANDS[name](w, out)
    partial = out.with_name(f"{out.name}.partial")
    if out.exists() and name != "run":
        return "nothing to do"
    begun = any(out.glob("*/qtk-manifest.json")) or (partial.exists() and any(partial.iterdir()))
    again = confined.run(*words, seconds=240)
    if again.code == 2 and re.search("--resume (continues it|does what is missing)", again.said):
        again = confined.run(*words, "--resume", seconds=240)
        assert again.code == 0, again.said
        return "resumed"
    if again.code == 2 and "`mv " in again.said:
        (move,) = re.findall(r"`(mv .*?)`", again.said)
        subprocess.run(shlex.split(move), check=True)
        return "moved"
    assert again.code == 0, again.said
    assert not begun or "nothing in it can be continued" in again.err, again.said
    return "begun again"


@pytest.mark.parametrize("name", ["merge", "quantize gptq fast", "bench divergence"])
def test_a_few_random_kills(workshop, tmp_path, confined, name: str) -> None:
    _killed(confined, workshop.copy(tmp_path / "w"), name, FEW, seed=1)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", COMMANDS)
def test_many_random_kills(workshop, tmp_path, confined, name: str) -> None:
    print(f"{name}: {dict(_killed(confined, workshop.copy(tmp_path / 'w'), name, MOMENTS, SEED))}")


def _killed_at_calls(failing: Confined, w: Workshop, name: str, calls: Callable[[int], int]) -> Counter[str]:
    """Kills a command just before each of its calls that write, sync, open or rename: `calls` tells which is next."""
    whole, out = (empty(w.root / folder) / "out" for folder in ("whole", "killed"))
    assert failing.run(*COMMANDS[name](w, whole), seconds=240).code == 0
    expected, counts, at = contents(whole), Counter[str](), 1
    while True:
        where = f"{name}, killed before call {at}"
        empty(out.parent)
        env = {"FAIL_CALL": "any", "FAIL_AT": str(at), "FAIL_ERRNO": "0", "FAIL_UNDER": str(out.parent)}
        killed = failing.run(*COMMANDS[name](w, out), env=env, seconds=240, alone=True)
        assert killed.survivors == [], where
        if killed.code == 0:
            return counts
        assert killed.code == 128 + signal.SIGKILL, f"{where}: {killed.said}"
        counts["killed"] += 1
        counts[_settled(failing, w, name, out, expected, where)] += 1
        at = calls(at)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_before_every_call(workshop, tmp_path, failing, name: str) -> None:
    def next_call(at: int) -> int:
        return at + 1 if name not in SLOW else at + 1 + at // 16  # of the slow, the first ones, then fewer and fewer

    print(f"{name}: {dict(_killed_at_calls(failing, workshop.copy(tmp_path / 'w'), name, next_call))}")


def test_what_a_killed_overwrite_left_is_removed_by_the_next(broken, confined) -> None:
    words = COMMANDS["merge"](broken, broken.out)
    assert confined.run(*words).code == 0
    before = broken.root / ".out.replaced-4711"
    shutil.copytree(broken.out, before)
    (before / "qtk-manifest.json").unlink()  # killed in the middle of removing it
    (broken.root / ".out.replaced-by-me").mkdir()
    again = confined.run(*words, "--overwrite")
    assert again.code == 0
    assert f"{before} was replaced" in again.err
    assert not before.exists()
    assert (broken.root / ".out.replaced-by-me").exists()


def test_a_run_that_was_killed_as_it_began_begins_again(workshop, tmp_path, failing) -> None:
    out = tmp_path / "out"

    def killed_before(call: int) -> str:
        env = {"FAIL_CALL": "any", "FAIL_AT": str(call), "FAIL_ERRNO": "0", "FAIL_UNDER": str(tmp_path)}
        outcome = failing.run(*COMMANDS["run"](workshop, out), env=env)
        assert outcome.code == 128 + signal.SIGKILL, outcome.said
        return outcome.err

    for call in (3, 6, 7):  # in the middle of the record, between it and the recipe, in the middle of that
        empty(tmp_path)
        assert "[1/4]" not in killed_before(call)
        assert "[1/4]" in killed_before(14)
        assert {path.name for path in out.iterdir()} == {"qtk-run.json", "recipe.yaml"}
