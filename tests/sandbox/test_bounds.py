"""Memory, processes, files: what a program takes is bounded at every level, and nothing of it is left."""

from __future__ import annotations

import textwrap

from support.hostile_jobs import ALIKE, SMALL, run, still_sound

from qtk.sandbox.job import JobLimits


def test_an_allocation_of_64_gb_fails_inside(workers):
    outcome = run(workers, "x = bytearray(64 * 2**30)\n")
    assert outcome.exit_code == 98
    started = run(workers, "x = bytearray(64 * 2**30)\n", started=True)
    assert "MemoryError" in started.stderr


@ALIKE
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


@ALIKE
def test_huge_files_are_refused(workers):
    program = "f = open('big', 'wb')\nwhile True: f.write(b'x' * 2**20)\n"
    outcome = run(workers, program)
    assert outcome.ending == "exited"
    assert not outcome.reached_end
    still_sound(workers)


def test_thousands_of_files_end_cleanly(workers):
    program = "for i in range(5000): open(f'f{i}', 'w').close()\n"
    outcome = run(workers, program, limits=JobLimits(**{**SMALL.__dict__, "disk_files": 1000}))
    assert outcome.ending == "exited"
    if workers.level in ("namespaces", "user-namespaces"):
        assert "No space left" in outcome.stderr
    still_sound(workers)
