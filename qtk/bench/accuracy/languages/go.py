"""Go: compiled and linked directly against prepared packages, which is what `go test` does, without its start-up.

Testify comes from Debian's source package or a GOPATH; it is built once into a cache that programs can only read.
`go vet`, which `go test` runs beforehand, is left out.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path

from qtk.bench.accuracy.languages.base import LanguageUnavailable, Requirement, Toolchain, new_sentinel, roomy
from qtk.bench.accuracy.suites.tasks import Task
from qtk.sandbox.job import MIB, Job

_TESTIFY = "github.com/stretchr/testify/assert"
_TEST = re.compile(r"^func (Test\w*)\(\w+ \*testing\.T\)", re.MULTILINE)
# The tests' package is called main, as the data has it; compiled under another path it can be imported like any other.
# A second test says that the first came to its end; whether it passed, the exit code says. The word PASS that the
# testing package prints after both goes nowhere, so that the sentinel is the last thing printed.
_ENTRY = """package main

import (
	"fmt"
	"os"
	task "task"
	"testing"
)

func end(*testing.T) {{
	fmt.Print("{1}")
	os.Stdout, _ = os.Open(os.DevNull)
}}

func main() {{
	all := func(string, string) (bool, error) {{ return true, nil }}
	testing.Main(all, []testing.InternalTest{{{{Name: "{0}", F: task.{0}}}, {{Name: "End", F: end}}}}, nil, nil)
}}
"""


class Go(Toolchain):
    """Package clause and imports, solution, tests: one file, compiled as a package and run by an entry of our own."""

    language = "go"
    commands = ("go",)
    install = "apt install golang-go"
    requirements = (Requirement("stretchr/testify", "testify", "apt install golang-github-stretchr-testify-dev"),)

    def prepare(self) -> None:
        super().prepare()
        _packages()

    @property
    def readable(self) -> tuple[str, ...]:
        return (_go_root(), str(_cache()))

    def job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        sentinel = new_sentinel()
        found = _TEST.search(task.tests)
        name = found.group(1) if found else "TestMissing"
        files = {
            "main_test.go": f"{solution}\n{task.tests}",
            "entry.go": _ENTRY.format(name, sentinel),
            "packages": _packages(),
            "packages-and-task": _packages() + "packagefile task=task.a\n",
        }
        tool = f"{_go_root()}/bin/go"
        environment = {**environment, "GOROOT": _go_root(), "GOCACHE": str(_cache()), "GOMAXPROCS": "2"}
        compile_ = (tool, "tool", "compile")
        steps = (
            self._compile(*compile_, "-p", "task", "-importcfg", "packages", "-o", "task.a", "main_test.go"),
            self._compile(*compile_, "-p", "main", "-importcfg", "packages-and-task", "-o", "entry.a", "entry.go"),
            self._compile(tool, "tool", "link", "-importcfg", "packages-and-task", "-s", "-w", "-o", "main", "entry.a"),
            self._run("./main"),
        )
        return Job(files, steps, sentinel, environment, roomy(self.limits, 1536 * MIB, 128))


def _cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "qtk" / "go-build"


@functools.cache
def _go_root() -> str:
    return subprocess.run(["go", "env", "GOROOT"], capture_output=True, text=True, check=True).stdout.strip()


@functools.cache
def _packages() -> str:
    """The import configuration of the standard library and testify: `packagefile PATH=FILE` lines."""
    for path in (os.environ.get("GOPATH", ""), "/usr/share/gocode", str(Path.home() / "go")):
        if path and (Path(path) / "src" / _TESTIFY).is_dir():
            break
    else:
        raise LanguageUnavailable("go needs testify (apt install golang-github-stretchr-testify-dev).")
    _cache().mkdir(parents=True, exist_ok=True)
    form = "{{if .Export}}packagefile {{.ImportPath}}={{.Export}}{{end}}"
    answer = subprocess.run(
        ["go", "list", "-export", "-deps", "-f", form, "std", _TESTIFY],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "GO111MODULE": "off",
            "GOPATH": path,
            "GOCACHE": str(_cache()),
            "GOFLAGS": "",
            "GOPROXY": "off",
        },
        cwd="/",
    )
    if answer.returncode:
        raise LanguageUnavailable(f"go cannot build its standard library and testify: {answer.stderr.strip()[-500:]}")
    return answer.stdout.replace("\n\n", "\n")
