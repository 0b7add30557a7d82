"""JavaScript programs in company: who passes there, who is sent to a sandbox of its own, and that verdicts stay the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace

import pytest

from qtk.bench.accuracy.languages.base import Company
from qtk.bench.accuracy.languages.javascript import JAVASCRIPT
from qtk.bench.accuracy.languages.registry import LANGUAGES
from qtk.bench.accuracy.programs.answers import Answer
from qtk.bench.accuracy.programs.extraction import Extracted
from qtk.bench.accuracy.programs.scoring import Scorer
from qtk.bench.accuracy.suites.suites import Suite, SuiteLanguage
from qtk.bench.accuracy.task import Task
from qtk.sandbox.pool import Workers, choose_level

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="no node")
TASK = Task("T/0", "javascript", "const f = (x) => {\n", "  return x\n}\n", "console.assert(f(3) === 3)\n", "f")
SUITE = Suite(
    name="own", summary="ours", source="ours", licence="Apache-2.0", layout="humaneval-x", seconds=60,
    languages={"javascript": SuiteLanguage(file="x", tasks=1)},
)  # fmt: skip
GOOD = "const f = (x) => { return x }\n"
# program -> the verdict that it must get
PROGRAMS = {
    GOOD: "passed",
    # The first of these four would change what the others see, if anything were shared.
    "Math.max = () => 99; leftover = 3; const f = (x) => x\n": "passed",
    "const f = (x) => typeof leftover === 'undefined' ? x : 0\n": "passed",
    "const f = (x) => Math.max(x, 1)\n": "passed",
    "const f = (x) => Math.max(x, 9)\n": "failed",
    "const f = (x) => { return x + 1 }\n": "failed",
    "const f = (x) => { throw new Error('no') }\n": "failed",
    "const f = (x) => { return f(x) }\n": "failed",
    "const f = (x) => {\n": "compile_error",
    "}); const f = (x) => x; (() => {\n": "compile_error",
    "const f = (x) => x\nreturn\n": "failed",
    "const f = (x) => { process.exit(0) }\n": "failed",
    "const f = (x) => { [].map['con' + 'structor']('return pro' + 'cess')().exit(0) }\n": "failed",
    "const f = (x) => { const kept = []; while (true) kept.push(new Array(1e7).fill(x)) }\n": "out_of_memory",
    "console.log('noise')\nconst f = (x) => x\n": "passed",
    "const f = (x) => { require('fs'); return x }\n": "passed",
    "const f = (x) => { setTimeout(() => 1, 1); return x }\n": "passed",
}
# It uses all the time that it gets, so it is run with less.
LOOP = "const f = (x) => { while (true) {} }\n"


def verdicts(programs: Iterable[str], rules: str = "qtk", seconds: float = SUITE.seconds) -> list[str]:
    answers = [Answer("own", "javascript", "T/0", n, f"```js\n{text}```") for n, text in enumerate(programs)]
    suite = SUITE.model_copy(update={"seconds": seconds})
    with Scorer(suite, "javascript", level=choose_level(), rules=rules, workers=2) as scorer:
        found = {scored.answer.sample: scored.verdict for scored in scorer.score([TASK], answers)}
    return [found[number] for number in range(len(answers))]


def test_verdicts_are_the_same_in_company_and_alone(monkeypatch):
    monkeypatch.setattr(Scorer, "extracted", lambda self, task, text: Extracted(text[6:-3], "whole"))
    assert verdicts(PROGRAMS) == list(PROGRAMS.values())
    assert verdicts([GOOD, GOOD, GOOD, LOOP], seconds=1) == ["passed"] * 3 + ["timeout"]
    noise = {text: verdict for text, verdict in PROGRAMS.items() if text == GOOD or "noise" in text}
    assert verdicts(noise, "codefuse:stored") == ["passed", "failed"]  # those rules take any output for a failure
    # All others have had their verdict alone already.
    alone = replace(JAVASCRIPT, toolchain=replace(JAVASCRIPT.toolchain, company=Company()))
    monkeypatch.setitem(LANGUAGES, "javascript", alone)
    passing = {text: verdict for text, verdict in PROGRAMS.items() if verdict == "passed"}
    assert verdicts(passing) == list(passing.values())


def test_only_silent_passes_of_the_plain_language_come_from_company():
    toolchain = replace(JAVASCRIPT.toolchain, seconds=4)
    with Workers(choose_level(), count=1, readable=toolchain.readable) as workers:
        jobs = {text: toolchain.job(text, TASK, workers.environment) for text in (*PROGRAMS, LOOP)}
        apart = [text for text, job in jobs.items() if not toolchain.sociable(job)]
        assert [text.split("(")[0] for text in apart] == ["const f = "] * 3
        assert [word for text in apart for word in ("process", "fs", "setTimeout") if word in text] == [
            *("process", "fs", "setTimeout"),
        ]
        group = [job for text, job in jobs.items() if text not in apart]
        [(_, outcome)] = workers.run([(0, toolchain.together(group))])
    words = outcome.stdout.split("\n")
    # What ends the process takes those behind it along, who then run alone; none before it loses its pass.
    assert [text for text, job in jobs.items() if job.sentinel in words] == list(PROGRAMS)[:4]


# Each tries to change what the programs after it get; most in words that the scan of the source does not know.
_SPELLED = "const C = 'con' + 'structor', P = 'proto' + 'type', E = 'pro' + 'cess';\n"
ATTACKS = [
    "require('assert')[C]('return ' + E)().exit(0);",
    "require[C]('return ' + E)().exit(0);",
    "module[C][C]('return ' + E)().exit(0);",
    "this[C][C]('return ' + E)().exit(0);",
    "try { null.x } catch (e) { e[C][C]('return ' + E)().exit(0) }",
    "try { require('assert').deepEqual(1, 2) } catch (e) { e[C][C]('return ' + E)().exit(0) }",
    "const deep = () => { try { deep() } catch (e) { e[C][C]('return ' + E)().exit(0) } }; deep();",
    "Error.prepareStackTrace = (e, sites) => sites; const sites = new Error().stack;\n"
    "for (const site of sites) { const g = site.getFunction(); g && g[C]('return ' + E)().exit(0) }",
    "for (const o of [require, require('assert'), console, module, exports, []]) {\n"
    "  let at = o; while (at = Object.getPrototypeOf(at)) { try { at.toJSON = at.call = at.then = at.length = () => true } catch {} }\n}",
    "require[C][P].call = () => true; Object[P].wrong = () => 0; Object[P].passed = () => true;",
    "Array[P][Symbol.iterator] = function* () {}; JSON.parse = Math.max = Object.keys = () => [];",
    "require('assert').deepEqual = () => {}; console.assert = () => {};",
    "const own = [C + E].flatMap(x => Object.getOwnPropertyNames(this)); for (const n of own) try { this[n] = () => true } catch {}",
    "(() => {})[C]; let f = function g() { return g['caller'] }; const c = f(); c && c[C]('return ' + E)().exit(0);",
    "arguments[5](console, require); return;",
]


def test_no_program_in_company_changes_what_the_others_get():
    toolchain = replace(JAVASCRIPT.toolchain, seconds=4)
    wrong = "const f = (x) => x + 1\n"
    programs = [_SPELLED + attack + "\n" + body for attack in ATTACKS for body in (GOOD, wrong)]
    with Workers(choose_level(), count=1, readable=toolchain.readable) as workers:
        for attack in programs:
            jobs = [toolchain.job(text, TASK, workers.environment) for text in (attack, GOOD, wrong)]
            [(_, outcome)] = workers.run([(0, toolchain.together(jobs))])
            passed = [job.sentinel in outcome.stdout.split("\n") for job in jobs]
            assert passed[1:] == [True, False], (attack, outcome.stderr)
            assert not (passed[0] and attack.endswith(wrong)), attack


@pytest.mark.parametrize(
    "early",
    [
        "END(); return;\n",
        "arguments[5](console, require); return;\n",
        "console.assert = () => {};\n",
        "const console = {assert: () => {}};\n",
        "require('fs').writeSync(1, process.argv.slice(2).join(' ')); return;\n",
        "const fs = require('fs'); for (const n of fs.readdirSync('.')) fs.writeSync(1, fs.readFileSync(n)); process.exit(0);\n",
        "process.emit('exit', 0); process.reallyExit(0);\n",
    ],
)
def test_a_program_cannot_say_itself_that_its_tests_have_ended(early):
    toolchain = replace(JAVASCRIPT.toolchain, seconds=60)
    with Workers(choose_level(), count=1, readable=toolchain.readable) as workers:
        job = toolchain.job(early + "const f = (x) => x + 1\n", TASK, workers.environment)
        [(_, outcome)] = workers.run([(0, job)])
    assert toolchain.verdict(outcome, "qtk") == "failed", outcome


def test_monkeypatched_assertions_do_not_pass_alone():
    toolchain = replace(JAVASCRIPT.toolchain, seconds=4)
    task = Task("T/1", "javascript", "", "", "require('assert').deepEqual(f(3), 3);\n", "f")
    with Workers(choose_level(), count=1, readable=toolchain.readable) as workers:
        job = toolchain.job("require('assert').deepEqual = () => {};\nconst f = (x) => 4\n", task, workers.environment)
        [(_, outcome)] = workers.run([(0, job)])
    assert toolchain.verdict(outcome, "qtk") == "failed", outcome


def test_the_modules_that_tests_use_work_in_company():
    toolchain = replace(JAVASCRIPT.toolchain, seconds=4)
    tests = [
        "const assert = require('node:assert');\nassert.deepEqual(f([1, {a: 2}]), [1, {a: 2}]);\n",
        "const assert = require('node:assert');\nassert.deepEqual(f([1, {a: 2}]), [1, {a: 3}]);\n",
        "const assert = require('node:assert');\nassert.deepEqual(f(null), undefined);\nassert.equal(f('3'), 3);\n",
        "const assert = require('node:assert');\nassert.deepEqual(f([]), {length: 1});\n",
    ]
    tasks = [Task(f"T/{n}", "javascript", "", "", text, "f") for n, text in enumerate(tests)]
    with Workers(choose_level(), count=1, readable=toolchain.readable) as workers:
        jobs = [toolchain.job(GOOD, task, workers.environment) for task in tasks]
        assert all(toolchain.sociable(job) for job in jobs)
        [(_, outcome)] = workers.run([(0, toolchain.together(jobs))])
        alone = {key: toolchain.verdict(outcome, "qtk") for key, outcome in workers.run(enumerate(jobs))}
    together = [job.sentinel in outcome.stdout.split("\n") for job in jobs]
    assert together == [True, False, True, False]
    assert [alone[number] == "passed" for number in range(4)] == together


def test_sandboxes_are_shared_out_evenly():
    assert [Company(16).size(n, 2) for n in (0, 1, 2, 3, 32, 33, 164)] == [1, 1, 1, 2, 16, 9, 14]
    assert Company().size(164, 2) == 1
