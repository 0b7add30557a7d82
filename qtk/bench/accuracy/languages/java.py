"""Java: the class of the tests is run by an entry class of our own, which says at the end that the end was reached."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from qtk.bench.accuracy.languages.base import LanguageUnavailable, Toolchain, new_sentinel, roomy
from qtk.bench.accuracy.suites.tasks import Task
from qtk.sandbox.job import MIB, Job

_ENTRY = """public class QtkEntry {{
    public static void main(String[] arguments) throws Throwable {{
        {1}.main(arguments);
        System.out.flush();
        System.out.print("{0}");
        System.out.flush();
    }}
}}
"""
# Short runs: the quick compiler only, one collector thread, the class archive that the JDK brings.
_QUICK = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-Xmx512m", "-XX:-UsePerfData")


_JAR_FOLDERS = ("/usr/share/java", "/usr/local/share/java")


@dataclass(frozen=True)
class Java(Toolchain):
    """Solution and tests in one file. main_class: the class whose `main` runs the tests. assertions: Java's own are on.

    jar: the name of a library that the prompts import, looked for in CLASSPATH and where Debian keeps jars.
    """

    main_class: str = "Main"
    assertions: bool = False
    jar: str = ""

    language = "java"
    commands = ("javac", "java")
    install = "apt install default-jdk-headless"

    def prepare(self) -> None:
        super().prepare()
        if self.jar and self._jar() is None:
            raise LanguageUnavailable(
                f"java needs {self.jar} (apt install lib{self.jar}-java, or its jar in the variable CLASSPATH)."
            )

    def _jar(self) -> Path | None:
        named = [Path(word) for word in os.environ.get("CLASSPATH", "").split(":") if word.endswith(".jar")]
        usual = [path for folder in _JAR_FOLDERS for path in sorted(Path(folder).glob(f"{self.jar}*.jar"))]
        return next(
            (path.resolve() for path in (*named, *usual) if path.name.startswith(self.jar) and path.is_file()), None
        )

    @property
    def readable(self) -> tuple[str, ...]:
        return (str(self._jar()),) if self.jar else ()

    def job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        sentinel = new_sentinel()
        source = f"{self.main_class}.java"
        files = {source: f"{solution}\n{task.tests}", "QtkEntry.java": _ENTRY.format(sentinel, self.main_class)}
        quick = [f"-J{flag}" for flag in _QUICK]
        path = ("-cp", f".:{self._jar()}" if self.jar else ".")
        assertions = ("-ea",) if self.assertions else ()
        steps = (
            self._compile(
                "javac",
                *quick,
                "-encoding",
                "UTF-8",
                "-nowarn",
                "-Xmaxerrs",
                "5",
                "-proc:none",
                *path,
                source,
                "QtkEntry.java",
            ),
            self._run("java", *_QUICK, *assertions, *path, "QtkEntry"),
        )
        return Job(files, steps, sentinel, environment, roomy(self.limits, 1536 * MIB, 128))
