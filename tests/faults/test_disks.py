"""Disks that are full, broken or closed to us: every call that writes is made to fail, one after the other."""

from __future__ import annotations

import errno
from collections import Counter

import pytest
from faults.commands import COMMANDS, RESUMED, SLOW, contents, empty, left_behind, require_whole_or_absent
from support.confined import Confined

_CODES = {
    errno.ENOSPC: (4, "disk is full"),
    errno.EIO: (4, "Input/output error"),
    errno.EACCES: (2, "Permission denied"),
}
_KINDS = ("open", "write", "sync", "rename")
_MAY_STAY = {name: {"out.partial", ".out.qtk-lock"} for name in RESUMED}


def _try(failing: Confined, w, name: str, kind: str, number: int, at: int) -> bool:
    """Runs a command whose `at`-th call of a kind fails. Returns whether there was such a call."""
    out = empty(w.root / "disk") / "out"
    env = {"FAIL_CALL": kind, "FAIL_AT": str(at), "FAIL_ERRNO": str(number), "FAIL_UNDER": str(out.parent)}
    outcome = failing.run(*COMMANDS[name](w, out), env=env, seconds=120)
    where = f"{name}: {kind} {at} fails with {errno.errorcode[number]}: {outcome.said}"
    assert outcome.clean, where
    require_whole_or_absent(failing, out, where)
    if outcome.code == 0:
        assert out.exists(), where
    else:
        code, phrase = _CODES[number]
        assert outcome.code == code, where
        assert phrase in outcome.err, where
        assert str(out.parent) in outcome.err, where
        assert set(left_behind(out)) <= _MAY_STAY.get(name, set()), where
    return outcome.code != 0


@pytest.mark.parametrize("number", _CODES, ids=lambda number: errno.errorcode[number])
@pytest.mark.parametrize("kind", _KINDS)
def test_the_first_call_that_fails_is_told(workshop, tmp_path, failing, kind: str, number: int) -> None:
    assert _try(failing, workshop.copy(tmp_path / "w"), "merge", kind, number, at=1)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("number", _CODES, ids=lambda number: errno.errorcode[number])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_call_that_fails_is_told(workshop, tmp_path, failing, name: str, number: int) -> None:
    w = workshop.copy(tmp_path / "w")
    failed = Counter[str]()
    for kind in _KINDS:
        at = 1
        while _try(failing, w, name, kind, number, at):
            failed[kind] += 1
            at += 1 if name not in SLOW else 1 + at // 8  # of the slow, the first ones, then fewer and fewer
    print(f"{name}, {errno.errorcode[number]}: {dict(failed)}")
    assert set(failed) == set(_KINDS)


def test_too_many_open_files_are_told(workshop, tmp_path, failing) -> None:
    w = workshop.copy(tmp_path / "w")
    env = {"FAIL_CALL": "open", "FAIL_AT": "1", "FAIL_ERRNO": str(errno.EMFILE), "FAIL_UNDER": str(w.root)}
    outcome = failing.run(*COMMANDS["merge"](w, w.root / "out"), env=env)
    assert outcome.clean, outcome.said
    assert outcome.code == 4
    assert "Too many files are open" in outcome.err


def test_what_is_done_outlives_a_full_disk(workshop, tmp_path, failing) -> None:
    w = workshop.copy(tmp_path / "w")
    whole, out = (empty(w.root / folder) / "out" for folder in ("whole", "disk"))
    name = "quantize gptq fast"
    assert failing.run(*COMMANDS[name](w, whole), seconds=120).code == 0
    env = {"FAIL_CALL": "write", "FAIL_AT": "60", "FAIL_ERRNO": str(errno.ENOSPC), "FAIL_UNDER": str(out.parent)}
    full = failing.run(*COMMANDS[name](w, out), env=env, seconds=120)
    assert full.code in (0, 4), full.said
    if full.code:
        again = failing.run(*COMMANDS[name](w, out), "--resume", seconds=120)
        if again.code == 2:
            again = failing.run(*COMMANDS[name](w, out), seconds=120)
        assert again.code == 0, again.said
    assert contents(out) == contents(whole)
    assert left_behind(out) == []
