"""Java: Main (the tests) is run by an entry class of our own, which says at the end that the end was reached."""

from __future__ import annotations

from qtk.bench.accuracy.sandbox.job import MIB, Job
from qtk.bench.accuracy.tasks import Task
from qtk.bench.accuracy.toolchains.base import Toolchain, new_sentinel, roomy

_ENTRY = """public class QtkEntry {{
    public static void main(String[] arguments) throws Throwable {{
        Main.main(arguments);
        System.out.flush();
        System.out.print("{0}");
        System.out.flush();
    }}
}}
"""
# Short runs: the quick compiler only, one collector thread, the class archive that the JDK brings.
_QUICK = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-Xmx512m", "-XX:-UsePerfData")


class Java(Toolchain):
    """`class Solution` and `class Main` in one file."""

    language = "java"
    commands = ("javac", "java")
    install = "apt install default-jdk-headless"

    def job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        sentinel = new_sentinel()
        files = {"Main.java": f"{solution}\n{task.tests}", "QtkEntry.java": _ENTRY.format(sentinel)}
        quick = [f"-J{flag}" for flag in _QUICK]
        steps = (
            self._compile("javac", *quick, "-encoding", "UTF-8", "-nowarn", "-proc:none", "Main.java", "QtkEntry.java"),
            self._run("java", *_QUICK, "-cp", ".", "QtkEntry"),
        )
        return Job(files, steps, sentinel, environment, roomy(self.limits, 1536 * MIB, 128))
