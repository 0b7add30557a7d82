"""What passes a limit has the verdict of that limit in every language, whatever its runtime makes of the refusal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qtk.bench.accuracy.languages.base import LanguageUnavailable, Toolchain
from qtk.bench.accuracy.languages.registry import LANGUAGES
from qtk.bench.accuracy.task import Task
from qtk.sandbox.job import MIB, JobLimits, ProgramOutcome
from qtk.sandbox.pool import Workers, choose_level

SMALL = JobLimits(memory_bytes=256 * MIB)
# language -> a program that takes ten million bytes again and again
HOGS = {
    "python": "def f(x=[]):\n    while True: x.append(bytearray(b'1' * 10000000))\nf()\n",
    "javascript": "const x = []; while (true) x.push(new Array(1000000).fill(x.length));\n",
    "java": "class Solution { public void f() { java.util.List<byte[]> x = new java.util.ArrayList<>();\n"
    "while (true) x.add(new byte[10000000]); } }\n",
    "cpp": "#include <vector>\nvoid f() { std::vector<std::vector<char>> x; while (true) x.push_back(std::vector<char>(10000000)); }\n",
    "go": "var x [][]byte\nfunc f() { for { y := make([]byte, 10000000); for i := range y { y[i] = 1 }; x = append(x, y) } }\n",
    "rust": "fn f() { let mut x: Vec<Vec<u8>> = Vec::new(); loop { x.push(vec![1u8; 10000000]); } }\n",
    "d": "void f() { ubyte[][] x; while (true) { auto y = new ubyte[10000000]; y[] = 1; x ~= y; } }\nunittest { f(); }\n",
    "perl": "my @x; while (1) { push @x, 'a' x 10000000; }\n",
    "php": "<?php\n$x = []; while (true) { $x[] = str_repeat('a', 10000000); }\n",
    "lua": "local x = {}\nwhile true do x[#x+1] = string.rep('a', 10000000) .. #x end\n",
    "r": "x <- list()\nwhile (TRUE) { x[[length(x)+1]] <- numeric(1e7) + 1 }\n",
    "ruby": "x = []\nwhile true do x << 'a' * 10000000 end\n",
    "racket": "#lang racket\n(define (f x) (f (cons (make-bytes 10000000 1) x)))\n(f '())\n",
    "bash": "x=aaaaaaaaaaaaaaaa\nwhile true; do x=$x$x; done\n",
}
MAINS = {
    "rust": "fn main() { f(); }\n",
    "go": "func TestF(t *testing.T) { f() }\n",
    "cpp": "int main() { f(); }\n",
    "d": "void main(){}\n",
    "java": "public class Main { public static void main(String[] a) { new Solution().f(); } }\n",
}
PROMPTS = {"java": "class Solution {\n    public void f() {\n", "go": "func f() {\n"}
SETUPS = {"go": 'package main\n\nimport (\n    "testing"\n)\n'}


def outcome_of(language: str, source: str, **changes: object) -> tuple[Toolchain, ProgramOutcome]:
    """The program run alone; `changes` are those of its last step."""
    try:
        # Far more time than any takes, so that on a machine with load too the limit under test is the first to be passed.
        toolchain = replace(LANGUAGES[language].ready_toolchain(200, {}), limits=SMALL)
    except LanguageUnavailable as error:
        pytest.skip(str(error))
    with Workers(choose_level(), count=1, readable=toolchain.readable, preload=()) as workers:
        prompt, tests, setup = (texts.get(language, "") for texts in (PROMPTS, MAINS, SETUPS))
        job = toolchain.job(source, Task("T", language, prompt, "", tests, "f", setup), workers.environment)
        job = replace(job, steps=(*job.steps[:-1], replace(job.steps[-1], **changes)))  # type: ignore[arg-type]
        [(_, outcome)] = workers.run([(0, job)])
    return toolchain, outcome


# The languages of HumanEval-X; MultiPL-E's are slow ones.
QUICK = ("python", "javascript", "java", "cpp", "go")


@pytest.mark.parametrize(
    "language", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in HOGS]
)
def test_a_program_that_takes_all_memory_is_out_of_memory(language):
    toolchain, outcome = outcome_of(language, HOGS[language])
    assert toolchain.verdict(outcome, "qtk") == "out_of_memory", outcome


@pytest.mark.parametrize(
    ("language", "source"),
    [
        ("python", "while True: pass\n"),
        pytest.param("javascript", "while (true) {}\n", marks=pytest.mark.slow),
        ("cpp", "void f() { volatile int x = 0; while (true) x = x + 1; }\n"),
        pytest.param("go", "func f() { for {} }\n", marks=pytest.mark.slow),
    ],
)
def test_a_program_that_uses_up_its_processor_time_is_a_timeout(language, source):
    toolchain, outcome = outcome_of(language, source, cpu_seconds=1)
    assert (outcome.ending, toolchain.verdict(outcome, "qtk")) == ("cpu_time", "timeout"), outcome


def test_a_program_that_prints_without_end_is_at_its_output_limit():
    toolchain, outcome = outcome_of("python", "while True: print('x' * 1000)\n")
    assert toolchain.verdict(outcome, "qtk") == "output_limit"


@pytest.mark.parametrize(
    ("language", "source"),
    [
        # One mistake after the other, and templates that name themselves at length in each.
        ("cpp", "#include <map>\n#include <string>\n" + "std::map<std::string, int> x = 1; y = x;\n" * 2000),
        pytest.param("java", "class Main { " + "int x = y; String z = 1;\n" * 2000 + "}\n", marks=pytest.mark.slow),
        pytest.param("rust", "fn f() { " + "let x: String = 1; undefined(x);\n" * 1000 + "}\n", marks=pytest.mark.slow),
    ],
)
def test_a_cascade_of_complaints_is_a_compile_error(language, source):
    toolchain, outcome = outcome_of(language, source)
    assert (outcome.step, toolchain.verdict(outcome, "qtk")) == ("compile", "compile_error"), outcome


def test_a_compiler_at_its_output_limit_speaks_of_the_program():
    outcome = ProgramOutcome("compile", -9, "output", "", "x" * 65536, False, 1.0)
    assert LANGUAGES["rust"].toolchain.verdict(outcome, "qtk") == "compile_error"
    assert LANGUAGES["rust"].toolchain.verdict(replace(outcome, ending="sandbox"), "qtk") == "sandbox_error"
