"""Answers that do not solve their task must not pass, whatever they do; honest ones must, however they look.

A folder a language: each file in forged/ and honest/ is one answer to the same small task, the best of a list so far.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from qtk.bench.accuracy.languages.base import LanguageUnavailable
from qtk.bench.accuracy.languages.registry import LANGUAGES
from qtk.bench.accuracy.programs.answers import Answer
from qtk.bench.accuracy.programs.scoring import Scorer
from qtk.bench.accuracy.suites.suites import load_suite
from qtk.bench.accuracy.task import Task
from qtk.sandbox.pool import choose_level

FOLDER = Path(__file__).parent
CASES = (([], []), ([1, 3, 2], [1, 3, 3]), ([4, 3, 5, 1], [4, 4, 5, 5]), ([-2, -7], [-2, -2]))
OWN = ("python", "cpp", "java", "javascript", "go")
QUICK = ("python", "javascript", "bash", "lua", "perl", "php")


def cases(line: str, separator: str = ", ", empty: str = "") -> str:
    """The line for each case; ARGUMENT and RESULT stand for its numbers."""

    def shown(numbers: list[int]) -> str:
        return separator.join(map(str, numbers)) or empty

    return "".join(line.replace("ARGUMENT", shown(a)).replace("RESULT", shown(b)) + "\n" for a, b in CASES)


PYTHON = Task(
    "T/0", "python", "def best_so_far(numbers):\n", "",
    "def check(candidate):\n" + cases("    assert candidate([ARGUMENT]) == [RESULT]") + "\n\ncheck(best_so_far)\n",
    "best_so_far",
)  # fmt: skip
CPP = Task(
    "T/0", "cpp",
    "/*\nThe best so far.\n*/\n#include<stdio.h>\n#include<vector>\n#include<algorithm>\nusing namespace std;\n"
    "vector<int> best_so_far(vector<int> numbers) {\n", "",
    "#undef NDEBUG\n#include<assert.h>\nbool issame(vector<int> a,vector<int>b){\n    if (a.size()!=b.size()) return false;\n"
    "    for (int i=0;i<a.size();i++) if (a[i]!=b[i]) return false;\n    return true;\n}\nint main(){\n"
    + cases("    assert (issame(best_so_far({ARGUMENT}), {RESULT}));")
    + cases("    assert (best_so_far({ARGUMENT}) == vector<int>({RESULT}));") + "}\n",
    "best_so_far",
)  # fmt: skip
JAVA = Task(
    "T/0", "java",
    "import java.util.*;\nimport java.lang.*;\n\nclass Solution {\n    /**\n    The best so far.\n    */\n"
    "    public List<Integer> bestSoFar(List<Integer> numbers) {\n", "",
    "public class Main {\n    public static void main(String[] args) {\n        Solution s = new Solution();\n"
    "        List<Boolean> correct = Arrays.asList(\n"
    + cases("                s.bestSoFar(new ArrayList<>(Arrays.asList(ARGUMENT))).equals(Arrays.asList(RESULT)),")
    + "                s.bestSoFar(new ArrayList<>(Arrays.asList(9))).equals(Arrays.asList(9))\n        );\n"
    "        if (correct.contains(false)) {\n            throw new AssertionError();\n        }\n    }\n}\n",
    "bestSoFar",
)  # fmt: skip
JAVASCRIPT = Task(
    "T/0", "javascript", "/* The best so far.\n*/\nconst bestSoFar = (numbers) => {\n", "",
    "const testBestSoFar = () => {\n"
    + cases("  console.assert(JSON.stringify(bestSoFar([ARGUMENT])) === JSON.stringify([RESULT]))")
    + "}\n\ntestBestSoFar()\n",
    "bestSoFar",
)  # fmt: skip
GO = Task(
    "T/0", "go", "// The best so far.\nfunc BestSoFar(numbers []int) []int {\n", "",
    "func TestBestSoFar(t *testing.T) {\n    assert := assert.New(t)\n"
    + cases("    assert.Equal([]int{RESULT}, BestSoFar([]int{ARGUMENT}))") + "}\n",
    "BestSoFar",
    setup='package main\n\nimport (\n    "testing"\n    "github.com/stretchr/testify/assert"\n)\n',
)  # fmt: skip
BASH = Task(
    "T/0", "bash", "#!/bin/bash\n# $1 is a space-separated list\nbest_so_far() {\n", "",
    '\ncandidate() {\n    best_so_far "$@"\n}\n\nset -e\nrun_test() {\n'
    + cases('    [[ $(candidate "ARGUMENT") = "RESULT" ]]', separator=" ") + "}\n\nrun_test\n",
    "best_so_far", closing="}",
)  # fmt: skip
RUBY = Task(
    "T/0", "ruby", "def best_so_far(numbers)\n", "",
    "require 'test/unit'\nclass TestHumanEval < Test::Unit::TestCase\n  def test_best_so_far\n"
    "    candidate = method(:best_so_far)\n" + cases("    assert_equal([RESULT], candidate.call([ARGUMENT]))")
    + "  end\nend\n",
    "best_so_far",
)  # fmt: skip
LUA = Task(
    "T/0", "lua", "local function best_so_far(numbers)\n", "",
    "lu = require('luaunit')\n\nfunction test_humaneval()\nlocal candidate = best_so_far\n"
    + cases("    lu.assertEquals(candidate({ARGUMENT}), {RESULT})") + "end\n\nos.exit(lu.LuaUnit.run())\n",
    "best_so_far",
)  # fmt: skip
PERL = Task(
    "T/0", "perl", "sub best_so_far {\n    my($numbers) = @_;\n", "",
    "use Test::Deep;\n\n\nsub testhumaneval {\n    my $candidate = \\&best_so_far;\n"
    + cases('        if(eq_deeply($candidate->([ARGUMENT]),[RESULT])) {\n        print "ok!" }else{\n        exit 1;\n        }')
    + "}\n\ntesthumaneval();\n",
    "best_so_far",
)  # fmt: skip
PHP = Task(
    "T/0", "php", "<?php\nfunction best_so_far($numbers) {\n", "",
    "function candidate(...$args) {\n    return best_so_far(...$args);\n}\n\nfunction test(): void {\n"
    + cases('    if (candidate(array(ARGUMENT)) !== array(RESULT)) { throw new Exception("Test failed!"); }')
    + "}\n\ntest();\n",
    "best_so_far", closing="}",
)  # fmt: skip
RUST = Task(
    "T/0", "rust", "/// The best so far.\nfn best_so_far(numbers: Vec<isize>) -> Vec<isize> {\n", "",
    "\nfn main() {\n    let candidate = best_so_far;\n"
    + cases("    assert_eq!(candidate(vec![ARGUMENT]), vec![RESULT]);").replace("vec![]", "Vec::<isize>::new()") + "}\n",
    "best_so_far", closing="}",
)  # fmt: skip
R = Task(
    "T/0", "r", "best_so_far <- function(numbers) {\n", "",
    "test_humaneval <- function() {\n    candidate <- best_so_far\n"
    + cases("    stopifnot(isTRUE(all.equal(candidate(c(ARGUMENT)), c(RESULT))))") + "}\ntest_humaneval()\n",
    "best_so_far",
)  # fmt: skip
D = Task(
    "T/0", "d", "import std.math;\n/*\nThe best so far.\n*/\nlong[] best_so_far(long[] numbers)\n", "",
    "unittest\n{\n    alias candidate = best_so_far;\n\n" + cases("    assert(candidate([ARGUMENT]) == [RESULT]);")
    + "}\nvoid main(){}",
    "best_so_far",
)  # fmt: skip
RACKET = Task(
    "T/0", "racket", "#lang racket\n\n;; The best so far.\n(define (best_so_far numbers)\n", "",
    "(require rackunit)\n\n(define (test-humaneval)\n\n  (let (( candidate best_so_far))\n"
    + cases("    (check-within (candidate (list ARGUMENT)) (list RESULT) 0.001)", separator=" ")
    + "))\n\n(test-humaneval)\n",
    "best_so_far",
)  # fmt: skip
TASKS = {
    task.language: task for task in (PYTHON, CPP, JAVA, JAVASCRIPT, GO, BASH, RUBY, LUA, PERL, PHP, RUST, R, D, RACKET)
}
UNRUN = {"julia", "swift"}  # Debian has no package of them: no answer of theirs was ever held against this


def fenced(path: Path) -> str:
    """An answer as chat models give it."""
    return f"```\n{path.read_text()}```\n"


def verdicts(language: str) -> dict[str, str]:
    """forged/NAME or honest/NAME -> the verdict, for every answer of a language."""
    task = TASKS[language]
    files = sorted(path for kind in ("forged", "honest") for path in (FOLDER / language / kind).iterdir())
    answers = [Answer("cheats", language, task.task_id, number, fenced(path)) for number, path in enumerate(files)]
    suite = load_suite("humaneval-x" if language in OWN else "multipl-e").model_copy(update={"seconds": 10})
    with Scorer(suite, language, level=choose_level(), rules="qtk", workers=None) as scorer:
        found = {scored.answer.sample: scored.verdict for scored in scorer.score([task], answers)}
    return {f"{path.parent.name}/{path.stem}": found[number] for number, path in enumerate(files)}


# One test a language, not an answer: they share a run of the scorer, which several workers of the tests would do each.
@pytest.mark.parametrize(
    "language",
    [language if language in QUICK else pytest.param(language, marks=pytest.mark.slow) for language in TASKS],
)
def test_only_what_solves_the_task_passes(language: str):
    try:
        found = verdicts(language)
    except LanguageUnavailable as reason:
        pytest.skip(str(reason))
    wrong = {name: verdict for name, verdict in found.items() if (verdict == "passed") != name.startswith("honest/")}
    assert not wrong, found


def test_there_are_enough_of_each():
    assert set(TASKS) | UNRUN == set(LANGUAGES)
    for language in TASKS:
        least = 15 if language in OWN else 5
        for kind in ("forged", "honest"):
            assert len(list((FOLDER / language / kind).iterdir())) >= least, (language, kind)


@pytest.mark.parametrize("language", ["bash", "d", "lua", "perl", "php", "r", "racket", "ruby"])
def test_whatever_passes_beside_its_tests_is_held_against_a_wrong_assertion(language: str):
    """Even what looks plain: in these languages no list of words says what a program can do."""
    job = LANGUAGES[language].toolchain.job(TASKS[language].prompt, TASKS[language], {})
    assert job.refutation is not None


@pytest.mark.parametrize(
    ("solution", "held"),
    [
        ("fn f(x: isize) -> Option<isize> { Some(x) }", False),
        ("fn Some(x: isize) -> Option<isize> { None }\nfn f(x: isize) -> Option<isize> { None }", True),
        ("const None: Option<isize> = Option::Some(1);\nfn f(x: isize) -> Option<isize> { None }", True),
        ("use core as c;\nfn f(x: isize) -> Option<isize> { c::option::Option::Some(x) }", True),
    ],
)
def test_a_rust_program_that_binds_what_the_tests_say_is_held_against_a_wrong_assertion(solution: str, held: bool):
    task = Task(
        "T/0", "rust", "", "", "fn main() {\n    let candidate = f;\n    assert_eq!(candidate(1), Some(1));\n}\n", "f"
    )
    assert (LANGUAGES["rust"].toolchain.job(solution, task, {}).refutation is not None) == held
