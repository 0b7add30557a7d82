"""Java's answers and tests are two virtual machines; what the tests see of an answer is what one machine would show them."""

from __future__ import annotations

import shutil

import pytest

from qtk.bench.accuracy.programs.answers import Answer
from qtk.bench.accuracy.programs.scoring import Scorer
from qtk.bench.accuracy.suites.suites import load_suite
from qtk.bench.accuracy.task import Task
from qtk.sandbox.pool import choose_level

# As HumanEval-X's Java/137 does, the tests compare texts by ==, which asks whether both are one object.
TASK = Task(
    "T/0", "java",
    "import java.util.*;\nimport java.lang.*;\n\nclass Solution {\n    /**\n    The longer word, in a box.\n    */\n"
    "    public Optional<Object> longer(Object a, Object b) {\n", "",
    "public class Main {\n    public static void main(String[] args) {\n        Solution s = new Solution();\n"
    "        List<Boolean> correct = Arrays.asList(\n"
    '                (String) s.longer("a", "bcd").get() == "bcd",\n'
    '                (String) s.longer("bcd", "a").get() == "bcd",\n'
    '                (String) s.longer("a", "b").get() == "none",\n'
    '                s.longer(new String("ab"), "a").get() != "ab"\n'
    "        );\n        if (correct.contains(false)) {\n            throw new AssertionError();\n        }\n    }\n}\n",
    "longer",
)  # fmt: skip
ANSWERS = {
    "its arguments and a literal": (
        "        String x = (String) a, y = (String) b;\n"
        '        if (x.length() == y.length()) return Optional.of("none");\n'
        "        return Optional.of(x.length() > y.length() ? a : b);\n    }\n}\n"
    ),
    "a text that it made": (
        "        String x = (String) a, y = (String) b;\n"
        '        if (x.length() == y.length()) return Optional.of("none".substring(y.length() - 1));\n'
        "        return Optional.of(new String(x.length() > y.length() ? x : y));\n    }\n}\n"
    ),
}


@pytest.mark.skipif(shutil.which("javac") is None, reason="no JDK")
def test_a_text_is_the_same_object_for_the_tests_where_it_would_be_in_one_machine():
    answers = [Answer("t", "java", "T/0", number, text) for number, text in enumerate(ANSWERS.values())]
    suite = load_suite("humaneval-x").model_copy(update={"seconds": 20})
    with Scorer(suite, "java", level=choose_level(), rules="qtk", workers=None) as scorer:
        found = {scored.answer.sample: scored.verdict for scored in scorer.score([TASK], answers)}
    assert found == {0: "passed", 1: "failed"}
