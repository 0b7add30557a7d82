"""A forked Python program finds in its memory what its worker ever held: nothing of any job, nor of its own tests."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.hostile_jobs import python_job, run

from qtk.sandbox.job import Apart, Job, compiled_tests, packed_code
from qtk.sandbox.pool import Workers

# With landlock alone a program cannot read where its memory lies; bubblewrap starts an interpreter for each.
FORKED = pytest.mark.parametrize(
    "workers",
    ["namespaces", pytest.param("user-namespaces", marks=pytest.mark.slow)],
    indirect=True,
    scope="module",
)
# It looks for "planted" by a pattern, because a word that is looked for would lie in the memory itself.
LOOKS = """
import ctypes, re

def found():
    for line in open("/proc/self/maps"):
        place, rights = line.split()[:2]
        if "r" in rights and "[v" not in line:
            first, last = (int(end, 16) for end in place.split("-"))
            if re.search(b"plan[t]ed", ctypes.string_at(first, last - first)):
                return True
    return False
"""


def with_tests(program: str, tests: str) -> Job:
    job = python_job(program)
    return replace(
        job, steps=(replace(job.steps[0], apart=Apart("", tests, packed_code(compiled_tests(tests)), ("f",))),)
    )


def passes(workers: Workers, job: Job) -> bool:
    [(_, outcome)] = workers.run([(0, job)])
    assert outcome.exit_code in (0, 1), outcome
    return outcome.reached_end


@FORKED
def test_nothing_of_an_earlier_job_is_in_the_memory(workers):
    for number in range(3):  # in the source, and in what is printed
        assert run(workers, f"print('planted', {number})\n").reached_end
    assert passes(workers, with_tests("f = lambda: 'planted'\n", "assert f() == 'planted'\n"))
    outcome = run(workers, LOOKS + "assert not found()\n")
    assert outcome.reached_end, outcome


@FORKED
def test_the_process_of_an_answer_does_not_hold_its_tests(workers):
    assert passes(workers, with_tests(LOOKS + "f = found\n", "assert not f(), 'planted'\n"))


@FORKED
def test_the_search_finds_what_is_there(workers):
    outcome = run(workers, LOOKS + "kept = 'planted'\nassert found()\n")
    assert outcome.reached_end, outcome
