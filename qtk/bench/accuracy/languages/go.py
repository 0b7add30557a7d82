"""Go: compiled and linked directly against prepared packages, which is what `go test` does, without its start-up.

Testify comes from Debian's source package or a GOPATH. It is built once into a cache that programs can only read.
`go vet`, which `go test` runs beforehand, is left out.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

from qtk.bench.accuracy.languages.assembly import Assembly, Frame, Head
from qtk.bench.accuracy.languages.assertions import Assertions, Form
from qtk.bench.accuracy.languages.base import LanguageUnavailable, Requirement, Toolchain, new_sentinel, roomy
from qtk.bench.accuracy.languages.blocks import Braces
from qtk.bench.accuracy.languages.codefuse import CodefuseRules
from qtk.bench.accuracy.languages.go_wire import (
    ANSWER_IMPORTS,
    TESTS_ARGUMENTS,
    TESTS_IMPORTS,
    TESTS_PACKAGE,
    WIRE_PACKAGE,
    WIRE_SOURCE,
    asking,
    running,
    serving,
)
from qtk.bench.accuracy.languages.grammar import Grammar
from qtk.bench.accuracy.languages.language import Language
from qtk.bench.accuracy.task import Task
from qtk.sandbox.job import MIB, Beside, Job

# Packages that an answer may use without importing them: codefuse-evaluation's list.
_PACKAGES = ("math", "strings", "fmt", "strconv", "time", "bytes", "regexp", "sort", "math/rand", "crypto/md5")
_IMPORTS = re.compile(r'^import\s*(?:\(([^)]*)\)|((?:[\w.]+[^\S\n]+)?"[^"]+"))[^\S\n]*;?[^\S\n]*\n?', re.MULTILINE)
_IMPORT = re.compile(r'(?:([\w.]+)[^\S\n]+)?"([^"]+)"')
_NOISE = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|`[^`]*`', re.DOTALL)
_HEAD = re.compile(r"package\s+\w+\s+import\s*\([^)]*\)\n")
_SETUP = 'package main\n\nimport (\n    "fmt"\n    "testing"\n)\n'  # what the tests use, and no answer may leave out


class _Blocks(Braces):
    """A type in a function's header may have braces of its own."""

    def opening(self, plain: str, definition: re.Match[str]) -> int | None:
        opening = super().opening(plain, definition)
        if opening is not None and plain[:opening].endswith(("interface", "struct")):
            opening = plain.rfind("{", opening, plain.find("\n", opening))
            return opening if opening >= 0 else None
        return opening


class _Assembly(Assembly):
    """Gathers the imports of prompt and answer, because Go refuses an import that is not used."""

    def head(self, prompt: str) -> Head:
        head = _HEAD.match(prompt)
        return Head(_SETUP, head.group(0)) if head else Head()

    def continued(self, task: Task, continuation: str, frame: Frame) -> str:
        return go_source(task, task.prompt.replace(task.imports, "", 1) + continuation)

    def whole(self, task: Task, code: str, frame: Frame) -> str:
        code = self.cleaned(code)
        return go_source(task, self.preamble(task, code).replace(task.imports, "", 1) + code)


def go_source(task: Task, body: str) -> str:
    """Package clause and imports, then `body`.

    Imports of the prompt and of the answer are joined, and kept only where the body uses them. The tests' own set-up
    has its imports already.
    """
    imported = dict.fromkeys([*_imports(task.imports), *_imports(body)])
    body = re.sub(r"^package\s+\w+[^\S\n]*\n", "", _IMPORTS.sub("", body), flags=re.MULTILINE)
    named = {alias or path.rsplit("/", 1)[-1] for alias, path in imported}
    usual = {path.rsplit("/", 1)[-1]: path for path in _PACKAGES}
    imported |= dict.fromkeys(("", path) for name, path in usual.items() if name not in named)
    used = set(re.findall(r"\b(\w+)\.", _NOISE.sub(" ", body))) | {".", "_"}
    there = set(_imports(task.setup))
    wanted = [
        (path, alias)
        for alias, path in imported
        if (alias or path.rsplit("/", 1)[-1]) in used and (alias, path) not in there
    ]
    lines = "".join(f'    {alias} "{path}"\n' if alias else f'    "{path}"\n' for path, alias in sorted(wanted))
    # A second import declaration may stand right after the first.
    block = f"import (\n{lines})\n" if wanted else ""
    return f"{task.setup}\n{block}{body}"


def _imports(source: str) -> list[tuple[str, str]]:
    """(alias or nothing, path) of every import."""
    imports = []
    for block, single in _IMPORTS.findall(source):
        imports += _IMPORT.findall(re.sub(r"//[^\n]*", "", block) or single)
    return imports


class _CodefuseRules(CodefuseRules):
    """Adds a package where its name and a point occur anywhere in the answer."""

    def source(self, task: Task, answer: str) -> str:
        absent = [path for path in _PACKAGES if path not in task.setup and f"{path.rsplit('/', 1)[-1]}." in answer]
        imports = "import (\n" + "".join(f'    "{path}"\n' for path in absent) + ")\n" if absent else ""
        prompt = (task.prompt + "\n").replace(task.imports, "")
        return f"{task.setup}\n{imports}{prompt}{answer}"


_TESTIFY = "github.com/stretchr/testify/assert"
_TEST = re.compile(r"^func (Test\w*)\(\w+ \*testing\.T\)", re.MULTILINE)
_PACKAGE = re.compile(r"^package\s+\w+", re.MULTILINE)
_MAIN = re.compile(r"^func\s+main\s*\(\s*\)", re.MULTILINE)


class GoToolchain(Toolchain):
    """The answer as the program, its tests as a package that the program imports; run twice at the same time (`go_wire`)."""

    def prepare(self) -> None:
        _packages()

    @property
    def readable(self) -> tuple[str, ...]:
        return (_go_root(), str(_cache()))

    def job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        sentinel = new_sentinel()
        found = _TEST.search(task.tests)
        name = found.group(1) if found else "TestMissing"
        files = {
            "answer.go": _answer(solution, task, name),
            "tests.go": _tests(task, name),
            "packages": _packages(),
            "packages-and-tests": f"{_packages()}packagefile {TESTS_PACKAGE}=tests.a\n",
        }
        tool = f"{_go_root()}/bin/go"
        environment = {**environment, "GOROOT": _go_root(), "GOCACHE": str(_cache()), "GOMAXPROCS": "2"}
        compile_ = (tool, "tool", "compile")
        beside = Beside(TESTS_ARGUMENTS, sentinel)
        steps = (
            self._compile(*compile_, "-p", TESTS_PACKAGE, "-importcfg", "packages", "-o", "tests.a", "tests.go"),
            self._compile(*compile_, "-p", "main", "-importcfg", "packages-and-tests", "-o", "answer.a", "answer.go"),
            self._compile(
                tool, "tool", "link", "-importcfg", "packages-and-tests", "-s", "-w", "-o", "main", "answer.a"
            ),
            replace(self._run("./main"), beside=beside),
        )
        return Job(files, steps, sentinel, environment, roomy(self.limits, 1536 * MIB, 128))


def _answer(solution: str, task: Task, test: str) -> str:
    """The answer as a program of its own. It may not have a function of the test's name, as if the test were beside it."""
    body = solution.removeprefix(task.setup)
    words = set(re.findall(r"\b(\w+)\.", _NOISE.sub(" ", _IMPORTS.sub("", body))))
    there = set(_imports(body))
    shared = [(alias, path) for alias, path in _imports(task.setup) if (alias or path.rsplit("/", 1)[-1]) in words]
    lines = "".join(f'import {alias} "{path}"\n' for alias, path in shared if (alias, path) not in there)
    body = _PACKAGE.sub("", body, count=1) if body is solution else body
    main = "" if _MAIN.search(body) else "func main() {}\n"
    return f"package main\n{ANSWER_IMPORTS}{lines}{body}\n{serving(task.entry)}{main}func {test}() {{}}\n"


def _tests(task: Task, test: str) -> str:
    """The tests, and of the prompt the functions before the one that was asked for. Its own stands for the answer's."""
    found = GO.grammar.found(task.entry, task.prompt)
    start = found[-1].start() if found else len(task.prompt)
    helpers = task.prompt[:start].replace(task.imports, "", 1)
    body = f"{helpers}{asking(task.prompt[start:], task.entry)}\n{task.tests}\n{running(test)}"
    setup = f"package {TESTS_PACKAGE}\n{TESTS_IMPORTS}"
    return go_source(replace(task, setup=setup, imports=f"{task.imports}\n{task.setup}"), body)


def _cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "qtk" / "go-build"


@functools.cache
def _go_root() -> str:
    return subprocess.run(["go", "env", "GOROOT"], capture_output=True, text=True, check=True).stdout.strip()


@functools.cache
def _packages() -> str:
    """The import configuration of the standard library, testify and our own package: `packagefile PATH=FILE` lines."""
    for path in (os.environ.get("GOPATH", ""), "/usr/share/gocode", str(Path.home() / "go")):
        if path and (Path(path) / "src" / _TESTIFY).is_dir():
            break
    else:
        raise LanguageUnavailable("go needs testify (apt install golang-github-stretchr-testify-dev).")
    _cache().mkdir(parents=True, exist_ok=True)
    form = "{{if .Export}}packagefile {{.ImportPath}}={{.Export}}{{end}}"
    offline = {"GO111MODULE": "off", "GOPATH": path, "GOCACHE": str(_cache()), "GOFLAGS": "", "GOPROXY": "off"}
    answer = subprocess.run(
        ["go", "list", "-export", "-deps", "-f", form, "std", _TESTIFY],
        capture_output=True,
        text=True,
        env={**os.environ, **offline},
        cwd="/",
    )
    if answer.returncode:
        raise LanguageUnavailable(f"go cannot build its standard library and testify: {answer.stderr.strip()[-500:]}")
    packages = answer.stdout.replace("\n\n", "\n")
    return f"{packages}packagefile {WIRE_PACKAGE}={_wire(packages)}\n"


def _wire(packages: str) -> Path:
    """The package over which an answer and its tests talk, compiled once for these packages."""
    key = hashlib.sha256(f"{_go_root()}\n{packages}\n{WIRE_SOURCE}".encode()).hexdigest()[:16]
    archive = _cache() / f"{WIRE_PACKAGE}-{key}.a"
    if archive.exists():
        return archive
    with tempfile.TemporaryDirectory(dir=_cache()) as folder:
        (Path(folder) / "wire.go").write_text(WIRE_SOURCE)
        (Path(folder) / "packages").write_text(packages)
        words = [f"{_go_root()}/bin/go", "tool", "compile", "-p", WIRE_PACKAGE, "-importcfg", "packages"]
        answer = subprocess.run([*words, "-o", "wire.a", "wire.go"], cwd=folder, capture_output=True, text=True)
        if answer.returncode:
            raise LanguageUnavailable(f"go cannot build what qtk needs of it: {answer.stdout.strip()[-500:]}")
        (Path(folder) / "wire.a").rename(archive)
    return archive


GO = Language(
    name="go",
    title="Go",
    short=("golang",),
    tags=("golang",),
    assembly=_Assembly(
        Grammar(
            blocks=_Blocks(
                re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'|`[^`]*`', re.DOTALL),
                search_blanked=True,
            ),
            definition=r"^func\s+NAME\s*[(\[]",
            next_definition=re.compile(r"(?:func|type)\s+(\w+)"),
            code_start=re.compile(r"^(?:package |import |func |type |var |const )", re.MULTILINE),
        ),
        main=re.compile(r"^func\s+main\s*\(\s*\)", re.MULTILINE),
    ),
    toolchain=GoToolchain(
        vocabulary=re.compile(
            r"\b(?:const|var|type)\s+(?:true|false|int|string|bool|float64)\b|\bfunc\s+(?:len|append)\s*\("
        ),
        assertion_form=Assertions(
            (
                Form(r"assert\.(?:Equal|InDelta)\((?:t, )?(?P<expected>.*?), CALLED\("),
                Form(r"actual:\s*CALLED\(", r"\s*,\s*expected:\s*", lines=False),
            ),
            quotes='"`',
        ),
        commands=("go",),
        install="apt install golang-go",
        requirements=(Requirement("stretchr/testify", "testify", "apt install golang-github-stretchr-testify-dev"),),
    ),
    codefuse_rules=_CodefuseRules(fence="go", ends_behind=re.compile(r"\};?")),
    bigcode_seconds=30.0,
)
