"""What a command took, in a process of its own: seconds, bytes that it asked the system for, peak of its memory.

A process's peak as the system counts it begins with that of the process that started it, so a small one stands between.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

# Counters of a process can be read after it has ended and before it is reaped.
LAUNCHER = """
import os, sys, time
start, null = time.monotonic(), [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=null)
os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
seconds = time.monotonic() - start
read = open(f"/proc/{process}/io").read().split()[1]
_, status, used = os.wait4(process, 0)
print('{"seconds": %.3f, "read": %s, "peak": %d}' % (seconds, read, used.ru_maxrss * 1024))
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""


@dataclass(frozen=True)
class MeasuredCommand:
    """read: bytes asked for, whether they came from the disk or from memory; peak: bytes of the resident set."""

    seconds: float
    read: int
    peak: int


def measure_command(words: list[str]) -> MeasuredCommand:
    """Runs a command to its end; what it prints is dropped. SystemExit, with what it said, where it fails."""
    done = subprocess.run([sys.executable, "-S", "-E", "-c", LAUNCHER, *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stderr}")
    return MeasuredCommand(**json.loads(done.stdout))
