"""Commands that are killed: what stands under the final name is whole, what was done is taken up, and nothing stays behind."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from faults.commands import COMMANDS, contents, left_behind
from faults.conftest import Workshop
from support.confined import Confined

FEW, MANY = 2, 50
MOMENTS = int(os.environ.get("QTK_TEST_KILLS", MANY))


def _killed(confined: Confined, w: Workshop, name: str, moments: int, seed: int) -> None:
    words = COMMANDS[name]
    whole, out = w.root / "whole", w.root / "killed"
    first = confined.run(*words(w, whole), seconds=240)
    assert first.code == 0, first.said
    expected, chooser = contents(whole), random.Random(seed)
    for moment in (chooser.uniform(0, first.seconds * 1.1) for _ in range(moments)):
        shutil.rmtree(out, ignore_errors=True)
        killed = confined.run(*words(w, out), seconds=moment)
        assert killed.code in (0, 124), killed.said
        _require_whole_or_absent(confined, name, out, moment)
        _finish(confined, w, name, out)
        assert contents(out) == expected, f"{name}, killed after {moment:.3f} s (seed {seed})"
        assert left_behind(out) == [], f"{name}, killed after {moment:.3f} s (seed {seed})"


def _require_whole_or_absent(confined: Confined, name: str, out: Path, moment: float) -> None:
    if name == "run":
        done = (
            [path for path in out.glob("*") if path.is_dir() and not path.name.endswith(".partial")]
            if out.exists()
            else []
        )
    else:
        done = [out] if out.exists() else []
    for directory in done:
        verified = confined.run("verify", directory)
        assert verified.code == 0, f"{name}, killed after {moment:.3f} s: {verified.said}"


def _finish(confined: Confined, w: Workshop, name: str, out: Path) -> None:
    """Does the command again as its messages say, until it is done."""
    words = COMMANDS[name](w, out)
    if out.exists() and name != "run":
        return
    again = confined.run(*words, seconds=240)
    if again.code == 2 and "--resume continues it" in again.said:
        again = confined.run(*words, "--resume", seconds=240)
    elif again.code == 2 and "`mv " in again.said:
        out.with_name(f"{out.name}.partial").rename(out)
        assert confined.run("verify", out).code == 0
        out.with_name(f".{out.name}.qtk-lock").unlink(missing_ok=True)
        return
    assert again.code == 0, again.said


@pytest.mark.parametrize("name", ["merge", "quantize gptq fast", "bench divergence"])
def test_a_few_random_kills(workshop, tmp_path, confined, name: str) -> None:
    _killed(confined, workshop.copy(tmp_path / "w"), name, FEW, seed=1)


@pytest.mark.nightly
@pytest.mark.parametrize("name", COMMANDS)
def test_many_random_kills(workshop, tmp_path, confined, name: str) -> None:
    _killed(confined, workshop.copy(tmp_path / "w"), name, MOMENTS, seed=2)


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
