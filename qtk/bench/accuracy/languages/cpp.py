"""C++: g++ with the standard of the published numbers; the tests' main says at its end that it was reached."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qtk.bench.accuracy.languages.base import Requirement, Toolchain, new_sentinel, roomy
from qtk.bench.accuracy.suites.tasks import Task
from qtk.sandbox.job import MIB, Job

_MAIN = re.compile(r"\bint\s+main\s*\([^)]*\)\s*\{")
# A local object's destructor runs when main returns, but neither after exit() nor after a failed assert().
_AT_END = '#include <cstdio>\nstruct QtkEnd {{ ~QtkEnd() {{ std::fflush(stdout); std::fputs("{0}", stdout); }} }};\n'


@dataclass(frozen=True)
class Cpp(Toolchain):
    """One translation unit: solution, then tests with `main`."""

    standard: str = "c++11"

    language = "cpp"
    commands = ("g++",)
    install = "apt install g++"
    requirements = (
        Requirement("boost/any.hpp", "Boost", "apt install libboost-dev"),
        Requirement("openssl/md5.h", "OpenSSL's headers", "apt install libssl-dev"),
        Requirement("cannot find -lcrypto", "OpenSSL", "apt install libssl-dev"),
    )

    def job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        sentinel = new_sentinel()
        tests = _MAIN.sub(lambda found: f"{found.group(0)} QtkEnd qtk_end;", task.tests, count=1)
        source = f"{solution}\n{_AT_END.format(sentinel)}{tests}"
        libraries = ("-lcrypto", "-lssl") if "openssl/" in source else ()
        steps = (
            self._compile("g++", f"-std={self.standard}", "-w", "-fmax-errors=5", "main.cpp", "-o", "main", *libraries),
            self._run("./main"),
        )
        return Job({"main.cpp": source}, steps, sentinel, environment, roomy(self.limits, 1024 * MIB, 64))
