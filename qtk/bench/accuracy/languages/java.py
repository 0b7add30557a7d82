"""Java: an answer and its tests are compiled at once and run in two virtual machines (`java_wire`)."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from qtk.bench.accuracy.languages.assembly import Assembly, Frame
from qtk.bench.accuracy.languages.assertions import Assertions, Form
from qtk.bench.accuracy.languages.base import LanguageUnavailable, Toolchain, new_sentinel, roomy
from qtk.bench.accuracy.languages.blocks import Braces
from qtk.bench.accuracy.languages.codefuse import CodefuseRules
from qtk.bench.accuracy.languages.grammar import Grammar
from qtk.bench.accuracy.languages.java_wire import ANSWER_PACKAGE, TESTS_PACKAGE, WIRE_SOURCES, asking
from qtk.bench.accuracy.languages.language import Language
from qtk.bench.accuracy.task import Task
from qtk.sandbox.job import MIB, Beside, Job

_CLASS = re.compile(r"\bclass\s+(\w+)[^{]*\{")
_MAIN_CLASS = re.compile(r"(?:public\s+)?(?:final\s+)?class\s+Main\b")
_MAIN_METHOD = re.compile(r"public\s+static\s+void\s+main\s*\(")
_METHOD = (
    r"^[^\S\n]*(?:@\w+(?:\([^)\n]*\))?\s+)*(?:(?:public|private|protected|static|final|synchronized)\s+)*"
    r"(?:<[\w, ]+>\s+)?(?!(?:return|new|else|throw)\b)[\w.]+[\w<>\[\],.? ]*\s+NAME\s*\([^;{}]*\)\s*"
    r"(?:throws\s+[\w., ]+)?\{"
)


class _Blocks(Braces):
    """A method ends with the class that holds it, if it is in one."""

    def definition_end(self, code: str, definition: re.Match[str]) -> int | None:
        for header in _CLASS.finditer(code[: definition.start()]):
            end = self.block_end(code[header.end() :], 1)
            if end is None or header.end() + end > definition.start():
                return None if end is None else header.end() + end
        return super().definition_end(code, definition)


class _Assembly(Assembly):
    """The answer's method or class goes into a class of the name that the prompt gives, and the tests want."""

    def whole(self, task: Task, code: str, frame: Frame) -> str:
        """The prompt's imports and the answer's, then that class. Tests that begin with its end close it themselves."""
        opened = _CLASS.search(task.prompt)
        name = opened.group(1) if opened else "Solution"
        imports = "".join(line + "\n" for line in task.prompt.split("\n") if line.startswith("import "))
        own = "".join(line.strip() + "\n" for line in code.split("\n") if re.match(r"\s*import\s+[\w.* ]+;", line))
        body = re.sub(r"^\s*(?:import\s+[\w.* ]+;|package\s+[\w.]+;)[^\n]*\n", "", code, flags=re.MULTILINE)
        body = self._class_renamed(task.entry, body, name)
        body = _BLOCKS.without_block(body, _MAIN_CLASS)
        if not re.search(rf"\bclass\s+{name}\b", body):
            body = f"class {name} {{\n{body}\n}}\n"
        body = re.sub(r"\bpublic\s+((?:final\s+|abstract\s+)*class)\b", r"\1", body)
        body = _BLOCKS.without_block(body, _MAIN_METHOD)
        body = self._left_open(body, name) if task.closing else self._with_prompts_methods(task.prompt, body, name)
        return f"{imports}{own}{body}\n"

    def _left_open(self, body: str, name: str) -> str:
        """The class without its last brace, which the tests bring; what stands behind the class goes before it."""
        header = re.search(rf"\bclass\s+{name}\b[^{{]*\{{", body)
        end = _BLOCKS.block_end(body[header.end() :], 1) if header else None
        if header is None or end is None:
            return body
        inside, behind = body[: header.end() + end - 1], body[header.end() + end :]
        return behind.strip() + "\n" + inside

    def _with_prompts_methods(self, prompt: str, body: str, name: str) -> str:
        """The class with those of the prompt's methods that it lacks: its answer or its tests may call them."""
        absent = [
            prompt[method.start : method.end]
            for method in self.grammar.definitions(prompt, depth=1)
            if not self.grammar.defines(method.name, body)
        ]
        methods = "".join(f"{method}\n" for method in absent)
        return re.sub(rf"\bclass\s+{name}\b[^{{]*\{{", lambda found: f"{found.group(0)}\n{methods}", body, count=1)

    def _class_renamed(self, entry: str, code: str, name: str) -> str:
        """The class that holds the function that was asked for, under the name that the tests want."""
        method = next(iter(self.grammar.found(entry, code)), None)
        headers = list(_CLASS.finditer(code[: method.start()])) if method else []
        if method is None or any(header.group(1) == name for header in headers):
            return code
        for header in headers:
            end = _BLOCKS.block_end(code[header.end() :], 1)
            if end is None or header.end() + end > method.start():
                return re.sub(rf"\b{header.group(1)}\b", name, code)
        return code


# Short runs: the quick compiler only, one collector thread, the class archive that the JDK brings.
_QUICK = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-Xmx512m", "-XX:-UsePerfData")
_COMPILER = (
    "javac",
    *(f"-J{flag}" for flag in _QUICK),
    "-encoding",
    "UTF-8",
    "-nowarn",
    "-Xmaxerrs",
    "5",
    "-proc:none",
)
_ARCHIVE = "javac.jsa"
_JAR_FOLDERS = ("/usr/share/java", "/usr/local/share/java")


@dataclass(frozen=True)
class JavaToolchain(Toolchain):
    """Solution and tests in packages of their own, run by two virtual machines (`java_wire`).

    main_class: the class whose `main` runs the tests. assertions: whether Java's own are on. jar: the name of a library
    that the prompts import, looked for in CLASSPATH and where Debian keeps jars.
    """

    main_class: str = "Main"
    assertions: bool = False
    jar: str = ""

    settings: ClassVar[frozenset[str]] = frozenset({"main_class", "assertions", "jar"})

    def prepare(self) -> None:
        if self.jar and self._jar() is None:
            raise LanguageUnavailable(
                f"java needs {self.jar} (apt install lib{self.jar}-java, or its jar in the variable CLASSPATH)."
            )
        _prepared()

    def _jar(self) -> Path | None:
        named = [Path(word) for word in os.environ.get("CLASSPATH", "").split(":") if word.endswith(".jar")]
        usual = [path for folder in _JAR_FOLDERS for path in sorted(Path(folder).glob(f"{self.jar}*.jar"))]
        return next(
            (path.resolve() for path in (*named, *usual) if path.name.startswith(self.jar) and path.is_file()), None
        )

    @property
    def readable(self) -> tuple[str, ...]:
        return (*((str(self._jar()),) if self.jar else ()), str(_prepared()))

    def job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        sentinel = new_sentinel()
        libraries = ":".join([f"{_prepared()}/classes", *([str(self._jar())] if self.jar else [])])
        files = {"answer.java": _answer(solution, task), f"{self.main_class}.java": _tests(task)}
        archive = f"-J-XX:SharedArchiveFile={_prepared()}/{_ARCHIVE}"  # javac starts a third faster
        runs = (
            "java",
            *_QUICK,
            "--add-opens=java.base/java.io=ALL-UNNAMED",
            *(("-ea",) if self.assertions else ()),
            "-cp",
        )
        opened = _CLASS.search(task.prompt)
        beside = Beside(
            (*runs, f"/proc/self/fd/4:{libraries}", "qtkwire.Tests", f"{TESTS_PACKAGE}.{self.main_class}"),
            sentinel,
            packed=TESTS_PACKAGE,
        )
        served = f"{ANSWER_PACKAGE}.{opened.group(1) if opened else 'Solution'}"
        steps = (
            self._compile(*_COMPILER, archive, "-d", ".", "-cp", libraries, *files),
            replace(self._run(*runs, f".:{libraries}", "qtkwire.Serve", served), beside=beside),
        )
        return Job(files, steps, sentinel, environment, roomy(self.limits, 1536 * MIB, 128))


def _answer(solution: str, task: Task) -> str:
    """The answer in its package. Where the tests close the class, it is closed here."""
    return f"package {ANSWER_PACKAGE};\n{solution}\n{'}' if task.closing else ''}\n"


def _tests(task: Task) -> str:
    """The prompt's class, in which its last method asks the answer's, and the tests."""
    found = JAVA.grammar.found(task.entry, task.prompt)
    start = found[-1].start() if found else len(task.prompt)
    methods = f"{task.prompt[:start]}{asking(task.prompt[start:], task.entry)}"
    return f"package {TESTS_PACKAGE};\n{methods}{'' if task.closing else '}'}\n{task.tests}\n"


@functools.cache
def _prepared() -> Path:
    """A folder with the classes over which an answer and its tests talk, and what makes javac start faster; made once."""
    version = subprocess.run(["javac", "-version"], capture_output=True, text=True).stdout
    known = hashlib.sha256("\n".join([version, *_COMPILER, *WIRE_SOURCES.values()]).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qtk" / "java"
    if (cache / known).is_dir():
        return cache / known
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        made = Path(folder) / known
        for name, text in WIRE_SOURCES.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_text(text)
        words = [*_COMPILER, f"-J-XX:ArchiveClassesAtExit={_ARCHIVE}", "-d", "classes", *WIRE_SOURCES]
        answer = subprocess.run(words, cwd=made, capture_output=True, text=True)
        if answer.returncode:
            raise LanguageUnavailable(f"javac cannot build what qtk needs of it: {answer.stderr.strip()[-500:]}")
        with contextlib.suppress(OSError):  # another process was faster
            made.rename(cache / known)
    return cache / known


_BLOCKS = _Blocks(
    re.compile(r'//[^\n]*|/\*.*?\*/|"""(?:\\.|.)*?"""|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL),
    search_blanked=True,
)
JAVA = Language(
    name="java",
    title="Java",
    assembly=_Assembly(
        Grammar(
            blocks=_BLOCKS,
            definition=_METHOD,
            next_definition=re.compile(
                r"\s*(?:public\s+|final\s+|abstract\s+|static\s+)*class\s+(\w+)"
                r"|\s*(?:(?:public|private|protected|static|final)\s+)+[\w<>\[\],.? ]+\s+(\w+)\s*\("
            ),
            code_start=re.compile(
                r"^\s*(?:import |package |(?:public |final |abstract )*class |public |private |static )", re.MULTILINE
            ),
        ),
    ),
    toolchain=JavaToolchain(
        vocabulary=re.compile(
            r"\bclass\s+(?:Arrays|List|ArrayList|AssertionError|Boolean|Integer|String|Objects|Math|System)\b"
        ),
        assertion_form=Assertions(
            (
                Form(
                    r"^[^\S\n]*(?:assert\(|Objects\.equals\(|Arrays\.equals\(|Math\.abs\()?(?:s\.)?CALLED\(",
                    r"\s*(?:==|,|\.equals\(|-)[^\S\n]*",
                    lines=False,
                ),
            ),
            quotes='"',
        ),
        commands=("javac", "java"),
        install="apt install default-jdk-headless",
    ),
    codefuse_rules=CodefuseRules(fence="java", ends_behind=re.compile(r"\};?")),
)
