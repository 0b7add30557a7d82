"""From an answer to a program: qtk's own extraction, and the two harnesses' rules, on the real data where it is at hand."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from qtk.bench.accuracy.languages.blocks import Braces, indented_end
from qtk.bench.accuracy.languages.go import go_source
from qtk.bench.accuracy.languages.registry import LANGUAGES
from qtk.bench.accuracy.programs.assemble import reference_source
from qtk.bench.accuracy.programs.compatibility import bigcode_source, codefuse_source, processed, require_rules
from qtk.bench.accuracy.programs.extraction import certain_end, continuation, extract
from qtk.bench.accuracy.suites.suites import load_suite, parse_suite, suite_names, suite_tasks
from qtk.bench.accuracy.suites.tasks import read_tasks
from qtk.bench.accuracy.task import Task
from qtk.errors import InputError

SUITE = load_suite("humaneval-x")
PYTHON = Task(
    "Python/0",
    "python",
    'import os\n\n\ndef helper(x):\n    return x\n\n\ndef add(a, b):\n    """ Adds.\n    >>> add(1, 2)\n    3\n    """\n',
    "    return a + b\n",
    "check(add)\n",
    "add",
)
BODY = "    return a + b\n"
WHOLE = "def add(a, b):\n    return a + b\n"
FENCED = f"Sure:\n```python\n{WHOLE}```\n"


def run_add(source: str) -> int:
    """Executes a source that defines add, without the suite's header of imports."""
    scope: dict[str, object] = {}
    exec(source.replace(SUITE.python_header, ""), scope)
    return scope["add"](1, 2)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("answer", "how"),
    [
        (BODY, "continuation"),
        (BODY + "\n\ndef other():\n    pass\n", "continuation"),
        (BODY + "\nprint(add(1, 2))\nraise SystemExit\n", "continuation"),
        ("return a + b\n", "continuation"),
        ("\n" + BODY + "```\n\nThis function adds two numbers.\n", "continuation"),
        (WHOLE, "whole"),
        (f"Here it is:\n{WHOLE}\nThis adds the two numbers, isn't it?\n", "whole"),
        (f"Sure!\n```python\n{WHOLE}```\nExplained.", "fenced"),
        (f"```\n{WHOLE}```", "fenced"),
        (f"```bash\npip install x\n```\n```python\n{WHOLE}```", "fenced"),
        (f"```python\nprint('an example')\n```\nand\n```python\n{WHOLE}```", "fenced"),
        (f"```python\n{WHOLE}", "fenced"),
        (f"```python\n{BODY}```", "fenced"),
        ('    """ inner\ntext in column 0\n"""\n' + BODY, "continuation"),
        ("    # a comment\n# in column 0\n" + BODY, "continuation"),
        ("# in column 0 first\n" + BODY + "\nprint(1 / 0)\n", "continuation"),
        ("c = a\n    return c + b\n\nprint(1 / 0)\n", "continuation"),
        ("if a:\n    return a + b\nreturn b\nThat is the sum.\n", "continuation"),
        ('s = \'"""\'\n    return a + b\n\n1 / 0\n', "continuation"),
        (f" Sure:\n```python\n{WHOLE}```", "fenced"),
        (f"```python\n{WHOLE.rstrip()}```\nThat is the function.\n```\nadd(1, 2) -> 3\n```", "fenced"),
        (f"```python\nfrom __future__ import annotations\n\n{WHOLE}```", "fenced"),
        (f"{WHOLE}\nassert add(1, 1) == 3\n", "whole"),
        ("def add(a, b): return a + b\nprint(1 / 0)\n", "whole"),
        ("def add(\n    a,\n    b,\n):\n    return a + b\n\nassert add(1, 1) == 3\n", "whole"),
        (f"{WHOLE}\n```python\nadd(1, 2)\n```\n", "whole"),
        (
            "    return twice(a) - a + b\n\n\n@staticmethod\n@staticmethod\ndef twice(x):\n    return 2 * x\n\n\n"
            "def other(f):\n    return 1 / 0\n",
            "continuation",
        ),
    ],
)
def test_python_answers_of_every_shape_become_the_program(answer, how):
    extracted = extract(SUITE, PYTHON, answer)
    assert extracted.how == how
    assert run_add(extracted.source) == 3


def test_the_prompts_helpers_stay_when_the_answer_is_whole():
    answer = "```python\ndef add(a, b):\n    return helper(a) + helper(b)\n```"
    assert run_add(extract(SUITE, PYTHON, answer).source) == 3


def braced(language: str, prompt: str, entry: str) -> Task:
    return Task("x", language, prompt, "", "", entry)


CPP = braced("cpp", "#include<vector>\nusing namespace std;\nint add(int a,int b){\n", "add")
JAVA = braced("java", "import java.util.*;\n\nclass Solution {\n    public int add(int a, int b) {\n", "add")
JS = braced("javascript", "/* add */\nconst add = (a, b) => {\n", "add")
_MATH = 'import (\n    "math"\n)\n'
_GO_SETUP = 'package main\n\nimport (\n    "testing"\n)\n'
GO = Task("x", "go", f"{_MATH}\nfunc Add(a int, b int) int {{\n", "", "", "Add", _GO_SETUP, _MATH)


@pytest.mark.parametrize(
    ("task", "text", "kept"),
    [
        (CPP, "    return a+b; // }\n}\nint main(){ return 0; }", "    return a+b; // }\n}\n"),
        (
            CPP,
            '    if (a) { string s="}"; }\n    return 0;\n}\nmore',
            '    if (a) { string s="}"; }\n    return 0;\n}\n',
        ),
        (JAVA, "        return a + b;\n    }\n}\nclass Main {}", "        return a + b;\n    }\n}\n"),
        (JS, "  return a + b\n}\nconsole.log(1)", "  return a + b\n}\n"),
        (JS, "  return `}${a}` + /}/.test(b)\n}\nx", "  return `}${a}` + /}/.test(b)\n}\n"),
        (GO, "    return a + b\n}\nfunc main() {}", "    return a + b\n}\n"),
    ],
)
def test_a_continuation_ends_with_the_brace_that_closes_the_function(task, text, kept):
    assert continuation(task, text) == kept
    assert certain_end(SUITE, task, text + "\nx\n", chat=False)
    assert not certain_end(SUITE, task, kept[: kept.rindex("}")], chat=False)


def test_helpers_of_the_answers_own_are_kept_and_others_are_not():
    text = "    return twice(a) + b\n\n\ndef twice(x):\n    return 2 * x\n\n\ndef other():\n    pass\n"
    assert continuation(PYTHON, text) == text[: text.index("\n\n\ndef other")] + "\n"
    decorated = text.replace("def twice", "@cache\ndef twice")
    assert continuation(PYTHON, decorated) == decorated[: decorated.index("\n\n\ndef other")] + "\n"
    go = "    return twice(a) + b\n}\n\nfunc twice(x int) int {\n    return 2 * x\n}\n\nfunc other() {\n}\n"
    assert continuation(GO, go) == go[: go.index("\n\nfunc other")] + "\n"


def test_whole_answers_in_other_languages_lose_their_main_and_keep_the_prompts_imports():
    cpp = extract(
        SUITE, CPP, "```cpp\n#include <map>\nint add(int a, int b) { return a + b; }\nint main() { return 1; }\n```"
    )
    assert "main" not in cpp.source
    assert "using namespace std;" in cpp.source
    java = extract(
        SUITE,
        JAVA,
        "```java\nimport java.io.*;\npublic class Solution {\n  public int add(int a, int b) { return a+b; }\n"
        "  public static void main(String[] x) { System.out.println(1); }\n}\n```",
    )
    assert "public class" not in java.source
    assert "main" not in java.source
    assert java.source.startswith("import java.util.*;\nimport java.io.*;\n")
    method = extract(SUITE, JAVA, "```java\npublic int add(int a, int b) { return a + b; }\n```")
    assert "class Solution {" in method.source
    code = 'import "strings"\n\nfunc Add(a int, b int) int {\n  return len(strings.Repeat("x", a+b))\n}\n\nfunc main() {}\n'
    go = extract(SUITE, GO, f"```go\npackage main\n\n{code}```")
    assert go.source.count("package main") == 1
    assert '"strings"' in go.source
    assert '"math"' not in go.source
    assert "func main" not in go.source
    js = extract(SUITE, JS, "```js\nfunction add(a, b) { return a + b }\n```")
    assert js.source.endswith("function add(a, b) { return a + b }\n")


def test_go_imports_are_those_that_are_used():
    body = "func Add() int {\n    // strings.\n    return int(math.Abs(-1)) + sort.SearchInts(nil, 1)\n}\n"
    source = go_source(GO, body)
    assert '    "math"\n    "sort"\n' in source
    assert '"strings"' not in source


def test_go_imports_keep_the_names_they_are_given():
    code = 'import (\n    m "math"\n    _ "embed" // for its effect\n)\nimport s "strings"\n'
    source = extract(
        SUITE, GO, f"```go\n{code}\nfunc Add(a int, b int) int {{\n    return int(m.Abs(1)) + a + b\n}}\n```"
    )
    assert 'import (\n    _ "embed"\n    m "math"\n)\n' in source.source
    assert source.source.count("import") == 2  # the set-up's, and this one


HELPED = braced("javascript", "const twice = (x) => {\n  return 2 * x\n}\n\nconst add = (a, b) => {\n", "add")


@pytest.mark.parametrize(
    "code",
    [
        "add = (a, b) => a + b;\n",
        "export default function add(a, b) { return a + b }\n",
        "export const add = ({x}, b) => { return x + b }\nexport default add;\n",
        "const twice = (x) => x + x;\nconst add = function (a, b) { return a + b }\n",
        "function twice(x) { return x + x }\nfunction add(a, b) { return a + b }\nexport { add, twice };\n",
    ],
)
def test_javascript_functions_of_every_form_are_found(code):
    for answer, how in ((f"```js\n{code}```", "fenced"), (f"Use this:\n{code}\nconsole.log(add(1, 2))\n", "whole")):
        found = extract(SUITE, HELPED, answer)
        assert found.how == how
        assert "export" not in found.source
        assert len(re.findall(r"(?:const |function )twice\b", found.source)) == 1
        assert re.search(r"\badd\b", found.source)
    assert "console" not in extract(SUITE, HELPED, f"{code}\nconsole.log(add(1, 2))\n").source
    assert certain_end(SUITE, HELPED, f"{code}\nconsole.log(add(1, 2))\n", chat=False)


HELPED_JAVA = braced(
    "java",
    "import java.util.*;\n\nclass Solution {\n    /**\n    Twice { x.\n    */\n    public int twice(int x) {\n"
    "        return 2 * x;\n    }\n\n    public int add(int a, int b) {\n",
    "add",
)


@pytest.mark.parametrize(
    "code",
    [
        "int add(int a, int b) { return twice(a) - a + b; }\n",
        '@SuppressWarnings("unchecked")\npublic static <T> int add(int a, int b) throws Exception {\n  return a + b;\n}\n',
        "class Helper {\n}\n\npublic class Adder {\n  int add(int a, int b) { return a + b; }\n}\n",
        "public class Solution {\n  int twice(int x) { return x + x; }\n  public int add(int a, int b) { return a + b; }\n}\n",
    ],
)
def test_java_methods_of_every_form_are_found_and_the_prompts_are_beside_them(code):
    found = extract(SUITE, HELPED_JAVA, f"```java\n{code}```")
    assert found.how == "fenced"
    assert len(re.findall(r"int twice\(", found.source)) == 1
    assert len(re.findall(r"int add\(", found.source)) == 1
    assert len(re.findall(r"class Solution \{", found.source)) == 1
    assert "Adder" not in found.source
    plain = extract(SUITE, HELPED_JAVA, f"This is it:\n{code}\nIt adds.\n")
    assert plain.how == "whole"
    assert "It adds" not in plain.source


def test_generation_stops_only_when_nothing_can_change():
    ended = certain_end(SUITE, PYTHON, BODY + "\ndef other():\n", chat=False)
    assert ended
    assert not certain_end(SUITE, PYTHON, BODY, chat=False)
    assert not certain_end(SUITE, PYTHON, WHOLE + "\nx", chat=False)
    assert certain_end(SUITE, PYTHON, f"Text\n```python\n{WHOLE}```\n", chat=True)
    assert not certain_end(SUITE, PYTHON, f"Text\n```python\n{WHOLE}", chat=True)
    # Not an end yet: another language's block, a block without the function, a block that may go on.
    assert not certain_end(SUITE, PYTHON, "```bash\npip install x\n```\n", chat=True)
    assert not certain_end(SUITE, PYTHON, "```python\nadd(1, 2)\n```\nThat is:\n", chat=True)
    assert not certain_end(SUITE, PYTHON, f"```python\nadd(1, 2)\n```\n```python\n{WHOLE}", chat=True)
    assert not certain_end(SUITE, PYTHON, f" Sure:\n```python\n{WHOLE}", chat=True)
    assert certain_end(SUITE, PYTHON, f"{WHOLE}\nprint(add(1, 2))\n", chat=False)


def test_scanning_never_takes_a_brace_in_a_string_for_a_block():
    cpp, java = LANGUAGES["cpp"].grammar.blocks, LANGUAGES["java"].grammar.blocks
    assert isinstance(cpp, Braces)
    assert isinstance(java, Braces)
    assert cpp.block_end('a = "}"; }', 1) == 10
    assert java.block_end("'}' }", 1) == 5
    assert indented_end("    x = 1\n\ny") == 11
    assert indented_end('    x = """\ny\n"""\n    return x\n') is None


@pytest.mark.parametrize(
    ("task", "answer", "by_13b", "by_llama34b"),
    [
        (PYTHON, "Text\n```Python\n    return 1\n```", "\n    return 1\n", "\n    return 1\n\n"),
        (PYTHON, 'import x\n"""doc"""\n    return 2\n<|endoftext|>', "\n    return 2\n", "\n    return 2\n\n"),
        (PYTHON, 'import x\n    s = """', 'port x\n    s = """', ""),
        (PYTHON, "import x\n    return 3", "    return 3", "    return 3\n"),
        (PYTHON, f"### Response:\n\tif a:\n{BODY}", f"\n    if a:\n{BODY}", ""),
        (JS, "  return 1\n}\nconsole.log(1)\n", "  return 1\n}\nconsole.log(1)\n", "  return 1\n}\n"),
        (CPP, "  return 1;\n}\nint main() {}\n", "  return 1;\n}\nint main() {}\n", "  return 1;\n}\n"),
    ],
)
def test_codefuses_processors_do_as_published(task, answer, by_13b, by_llama34b):
    assert processed(SUITE, task, answer, "codefuse:13b") == by_13b
    assert processed(SUITE, task, answer, "codefuse:llama34b") == by_llama34b


@pytest.mark.parametrize(
    ("rules", "passes"),
    [
        # The evaluation itself drops what stands in column 0, but for a function: fences too.
        ("codefuse:stored", {BODY: True, WHOLE: True, FENCED: True}),
        ("codefuse:13b", {BODY: True, WHOLE: True, FENCED: True}),
        # Nothing is left of a whole function: this processor keeps lines until the first that is not indented.
        ("codefuse:llama34b", {BODY: True, WHOLE: False, FENCED: False}),
    ],
)
def test_codefuse_rules_take_answers_through_the_processor_that_is_named(rules, passes):
    for answer, right in passes.items():
        source = codefuse_source(SUITE, PYTHON, answer, rules)
        if right:
            assert run_add(source) == 3
        else:
            with pytest.raises((SyntaxError, AssertionError)):
                assert run_add(source) == 3


def test_codefuse_puts_answers_together_as_published():
    source = codefuse_source(SUITE, PYTHON, BODY, "codefuse:stored")
    assert source == SUITE.python_header + PYTHON.prompt + "\n" + BODY + "\n"
    # The prompt, helpers and all, is left out before a whole function.
    source = codefuse_source(SUITE, PYTHON, WHOLE, "codefuse:stored")
    assert source == SUITE.python_header + WHOLE + "\n"
    noisy = f"x = 1\n@cache\n{WHOLE}print(x)\nclass A:\n    pass\n"
    assert codefuse_source(SUITE, PYTHON, noisy, "codefuse:stored").endswith(f"{WHOLE}class A:\n    pass\n\n")
    go = codefuse_source(SUITE, GO, "    return int(math.Abs(1)) + strings.Count(a, b)\n}\n", "codefuse:stored")
    assert 'import (\n    "math"\n    "strings"\n)\n' in go
    assert go.count('"math"') == 1


def test_codefuse_mbpp_takes_the_first_block_without_the_word_python():
    suite = load_suite("mbpp")
    task = Task("Python/11", "python", "Write.", "", "assert f()\n", "f", setup="x = 1")
    answer = "```python\ndef f(): return 'python'\n```"
    source = codefuse_source(suite, task, answer, "codefuse:stored")
    assert source == suite.python_header + " \ndef f(): return ' '\n\nx = 1\n"
    # Its processors have taken the fence off before.
    source = codefuse_source(suite, task, answer, "codefuse:llama34b")
    assert source == suite.python_header + "\ndef f(): return 'python'\n\nx = 1\n"


def test_bigcode_rules_as_published():
    suite = load_suite("humaneval")
    source = bigcode_source(suite, PYTHON, BODY + "\nprint(1)\n```")
    assert source == PYTHON.prompt.strip() + BODY + "\n"
    with pytest.raises(InputError, match="humaneval, mbpp and multipl-e"):
        require_rules(SUITE, "bigcode")
    with pytest.raises(InputError, match="--compat bigcode has"):
        require_rules(load_suite("multipl-e"), "codefuse:stored")
    require_rules(SUITE, "codefuse:13b")


def test_suites_that_ship_can_be_read_and_named():
    for name in suite_names():
        assert load_suite(name).name == name
    assert parse_suite("humaneval-x:py,js")[1] == ("python", "javascript")
    for wrong in ("humaneval-y", "humaneval-x:cobol"):
        with pytest.raises(InputError):
            parse_suite(wrong)


def test_bad_task_files_are_refused_with_every_offender(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("QTK_DATA", raising=False)
    file = tmp_path / "humaneval_python.jsonl"
    file.write_text('{"task_id": 1}\n{"task_id": 2}\n')
    with pytest.raises(InputError, match=r"(?s)row 1.*row 2"):
        suite_tasks(SUITE, "python", tmp_path)
    file.write_text("{}\nnot json\n[]\n")
    with pytest.raises(InputError, match=r"(?s)line 2.*line 3"):
        read_tasks(file, "humaneval-x", "python", False)
    with pytest.raises(InputError, match="QTK_DATA"):
        suite_tasks(SUITE, "java", None)


@pytest.mark.parametrize("language", ["python", "java", "cpp", "javascript", "go"])
def test_references_given_in_every_shape_become_the_same_program(shared_data, language):
    """Fenced, whole and continued, the real reference solutions give sources that define the function once."""
    tasks, _ = suite_tasks(SUITE, language, shared_data)
    assert len(tasks) == SUITE.languages[language].tasks
    for task in tasks:
        plain = extract(SUITE, task, task.reference + "\nThat is all; } it ends here.")
        if language == "python":
            ast.parse(plain.source)
        assert plain.how == "continuation"
        kept = plain.source.strip()
        reference = reference_source(SUITE, task).strip()
        assert reference.startswith(kept)
        assert len(reference) - len(kept) < 40  # CPP/94 ends in two preprocessor lines of its tests
        fenced = extract(SUITE, task, f"Well:\n```{language}\n{task.prompt}{task.reference}\n```\nDone")
        assert fenced.how == "fenced"
        assert task.entry in fenced.source
