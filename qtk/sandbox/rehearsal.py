"""What a worker does once, so that the processes it forks need not: each function of theirs runs some times on made-up values.

A forked process pays for every page that it writes to, and Python writes to a function's code when that is new to it.
Nothing of a job is here. Standard library only.
"""

from __future__ import annotations

import _thread
import json
import os
import types

from qtk.sandbox import kernel
from qtk.sandbox.answer_process import AnswerProcess
from qtk.sandbox.apart_tests import run_tests
from qtk.sandbox.job import AnswerProgram, Apart, Command, Job, ProgramOutcome, compiled_tests, packed_code
from qtk.sandbox.plain_values import Line

_TIMES = 12
_TESTS = """
def check(candidate):
    assert candidate([3, 1.5, "a", True, None, (1, 2), {"b": [1]}, {1}]) == [3, 1.5, "a", True, None, (1, 2), {"b": [1]}, {1}]
    assert candidate("a") == "a" and candidate(1) == 1


check(same)
"""


def rehearse() -> None:
    """Runs tests against a function of this very process, over a connection, and carries a job there and back."""
    module = types.ModuleType("rehearsal")
    module.__dict__["same"] = lambda value: value
    compiled = packed_code(compiled_tests(_TESTS))
    for _ in range(_TIMES):
        job = Job(
            {"main.py": ""}, (Command("run", script="main.py", apart=Apart("", _TESTS, compiled, ("same",))),), "word"
        )
        job = Job.from_json(json.loads(json.dumps(job.as_json())))
        assert job.answer is not None
        AnswerProgram.from_json(json.loads(json.dumps(job.answer.as_json())))
        ours, theirs = kernel.connected_pair()
        _thread.start_new_thread(_serve, (theirs, module))
        assert job.steps[0].apart is not None
        tests = run_tests(Line(ours), job.steps[0].apart)
        os.close(ours)
        ProgramOutcome("run", tests.code, "exited", tests.printed, tests.complaint, True, 0.0).as_json()


def _serve(end: int, module: types.ModuleType) -> None:
    try:
        AnswerProcess(Line(end), module).serve()
    except EOFError:
        os.close(end)
