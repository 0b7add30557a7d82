"""What programs cannot reach, at every level: the network, files outside, the caller, each other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support.hostile_jobs import LEVELS, SHUT_IN, run, still_sound

from qtk.sandbox import kernel
from qtk.sandbox.pool import Workers, why_not


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
numbers = {
    "x86_64": (248, 249, 250, 319, 447, 29, 68, 64, 425, 101, 310, 311, 312, 438),
    "aarch64": (217, 218, 219, 279, 447, 194, 186, 190, 425, 117, 270, 271, 272, 438),
}
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
