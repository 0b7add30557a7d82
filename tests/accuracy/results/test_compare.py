"""`qtk bench compare`: flips, the paired test and the verdict, on results with known contents."""

from __future__ import annotations

import json
import random

import pytest

from qtk.bench.accuracy.results.baseline import load_baseline
from qtk.bench.accuracy.results.comparison import compare, read_comparison
from qtk.bench.accuracy.results.harness import HarnessMetric, HarnessScore
from qtk.bench.accuracy.results.likelihood import TaskLikelihood, score_likelihood
from qtk.bench.accuracy.results.pooled import problem_means
from qtk.bench.accuracy.results.programs import ProgramsScore, score_programs
from qtk.bench.accuracy.results.result import AccuracyResult
from qtk.bench.accuracy.results.score import CompareOptions, TaskSource, conclusion
from qtk.bench.accuracy.results.statistics import Limits, paired_rate_limits
from qtk.bench.results import measure_into
from qtk.checkpoint.manifest import verify_chain
from qtk.errors import InputError


def result(
    passed: dict[str, set[int]], *, tasks: int = 164, sha256: str = "0" * 64, **changes: object
) -> AccuracyResult:
    """A result of humaneval-x in which these task numbers of each language passed."""
    scores = [
        score_programs(
            TaskSource("humaneval-x", language, "x.jsonl", sha256),
            {f"T/{n}": ["passed" if n in numbers else "failed"] for n in range(tasks)}, [1],
        )
        for language, numbers in passed.items()
    ]  # fmt: skip
    settings: dict[str, object] = {
        "qtk_version": "0", "model": "m", "answers": None, "rules": "qtk", "chat_format": None, "decoding": {},
        "sandbox": {"level": "namespaces"}, "scores": scores, "seconds": 0.0, "machine": {},
    }  # fmt: skip
    return AccuracyResult(**{**settings, **changes})


BEFORE = result({"python": set(range(129))})
AFTER = result({"python": set(range(2, 130))})


def test_flips_error_and_p_value():
    [row] = compare(BEFORE, AFTER, CompareOptions()).rows
    assert (row.lost, row.gained) == (["T/0", "T/1"], ["T/129"])
    assert row.before == pytest.approx(100 * 129 / 164)
    assert row.before_error == pytest.approx(3.21, abs=0.01)
    assert row.difference == pytest.approx(-100 / 164)
    assert row.p_value == 1.0
    assert (row.low, row.high) == pytest.approx((-3.08, 1.60), abs=0.01)
    assert row.verdict == "too few tasks to tell", (
        "164 tasks with three flips do not show that less than 2 points were lost"
    )
    assert row.enough_tasks == pytest.approx(516, abs=10)
    [row] = compare(BEFORE, AFTER, CompareOptions(tolerance=3.5)).rows
    assert row.verdict == "within tolerance"
    assert row.published is not None
    assert (row.published.before, row.published.after) == (78.65, 78.05)


@pytest.mark.parametrize(
    ("before", "after", "tasks", "tolerance", "verdict"),
    [
        (set(), set(), 3, 0, "too few tasks to tell"),
        (set(), set(), 3, 2, "too few tasks to tell"),
        ({0, 1, 2}, {0, 1, 2}, 3, 2, "too few tasks to tell"),
        ({0, 1, 2}, set(), 3, 2, "too few tasks to tell"),
        ({0}, {0}, 1, 2, "too few tasks to tell"),
        (set(range(129)), set(range(129)), 164, 2, "within tolerance"),
        (set(range(129)), set(range(129)), 164, 1, "too few tasks to tell"),
        (set(range(129)), set(range(119)), 164, 2, "beyond tolerance"),
        (set(range(20)), set(), 20, 2, "beyond tolerance"),
        (set(), set(range(20)), 20, 2, "within tolerance"),
    ],
)
def test_a_verdict_says_what_the_tasks_show(before, after, tasks, tolerance, verdict):
    old, new = result({"python": before}, tasks=tasks), result({"python": after}, tasks=tasks)
    comparison = compare(old, new, CompareOptions(tolerance=tolerance))
    assert [row.verdict for row in comparison.rows] == [verdict]
    assert bool(comparison.gate_failure) == (verdict != "within tolerance")


def several(passed: dict[str, list[float]], samples: int = 4) -> AccuracyResult:
    """A result of humaneval-x: by language the shares of samples that passed, problem by problem."""
    scores = [
        score_programs(
            TaskSource("humaneval-x", language, "x.jsonl", "0" * 64),
            {
                f"{language.title()}/{n}": ["passed"] * round(share * samples)
                + ["failed"] * round((1 - share) * samples)
                for n, share in enumerate(shares)
            },
            [1],
        )
        for language, shares in passed.items()
    ]
    return result({}, scores=scores)


def test_all_languages_together_count_a_problem_once():
    """Against the mean change of each problem computed by hand."""
    chooser = random.Random(5)
    before, after = (
        {language: [chooser.choice((0, 0.25, 0.5, 1)) for _ in range(40)] for language in ("python", "java", "go")}
        for _ in range(2)
    )
    *each, row = compare(several(before), several(after), CompareOptions()).rows
    changes = []
    for problem in range(40):
        old = sum(shares[problem] for shares in before.values()) / 3
        new = sum(shares[problem] for shares in after.values()) / 3
        changes.append(new - old)
    mean = sum(changes) / 40
    error = (sum((change - mean) ** 2 for change in changes) / 39 / 40) ** 0.5
    limits = paired_rate_limits(changes)
    assert [it.pooled for it in each] == [False] * 3
    assert (row.label, row.tasks, row.counted) == ("humaneval-x all languages", 40, "40 problems")
    assert row.difference == pytest.approx(100 * mean)
    assert row.difference == pytest.approx(sum(it.difference for it in each) / 3)
    assert row.difference_error == pytest.approx(100 * error)
    assert (row.low, row.high) == pytest.approx((100 * limits.low, 100 * limits.high))
    assert len(row.lost) == sum(change < -1e-9 for change in changes)
    assert (row.p_value, row.flips()) == (None, {})
    read = type(row).model_validate_json(row.model_dump_json())
    assert read == row


def test_the_same_loss_in_every_language_is_no_more_evidence_than_in_one():
    languages = ("python", "java", "go", "cpp", "javascript")
    [one] = compare(result({"python": set(range(129))}), result({"python": set(range(3, 129))}), CompareOptions()).rows
    old = result({key: set(range(129)) for key in languages})
    new = result({key: set(range(3, 129)) for key in languages})
    pooled = compare(old, new, CompareOptions()).rows[-1]
    assert (pooled.difference, pooled.difference_error) == pytest.approx((one.difference, one.difference_error))
    assert (pooled.low, pooled.high) == pytest.approx((one.low, one.high))
    spread = {
        language: set(range(129)) - {3 * place, 3 * place + 1, 3 * place + 2}
        for place, language in enumerate(languages)
    }
    apart = compare(old, result(spread), CompareOptions()).rows[-1]
    assert apart.low > pooled.low, "other problems in each language are more evidence"


def test_tasks_whose_numbers_do_not_tell_them_apart_are_not_taken_together():
    assert problem_means([{"Go/1": 1.0, "Go/2": 0.0}, {"Java/1": 0.0}]) == {"problem 1": 0.5, "problem 2": 0.0}
    named = problem_means([{"HumanEval_7_a": 1.0}, {"HumanEval_7_a": 0.0}])
    assert named == {"problem 7": 0.5}
    assert problem_means([{"v2_a": 1.0, "v2_b": 0.0}, {"v2_a": 0.0}]) == {"v2_a": 0.5, "v2_b": 0.0}


def test_too_few_problems_are_called_so():
    [*_, row] = (comparison := compare(result({"go": {0}, "java": {0}}, tasks=3), result({"go": {0}, "java": {0}}, tasks=3),
                                       CompareOptions())).rows  # fmt: skip
    assert row.verdict == "too few tasks to tell"
    assert "humaneval-x all languages: +0.00 points, at worst -47.42 points, tolerance 2: 3 problems are too few" in (
        comparison.gate_failure
    )


def test_conclusions():
    assert conclusion(Limits(-2.0, 1.0), 2.0) == "within tolerance"
    assert conclusion(Limits(-2.1, 1.0), 2.0) == "too few tasks to tell"
    assert conclusion(Limits(-5.0, -2.1), 2.0) == "beyond tolerance"
    assert conclusion(None, 2.0) == "too few tasks to tell"


def test_a_gate_without_evidence_fails(tmp_path, run_qtk):
    (tmp_path / "r.json").write_text(result({"python": {0}}, tasks=3).model_dump_json())
    words = ("bench", "compare", tmp_path / "r.json", tmp_path / "r.json")
    assert run_qtk(*words).returncode == 0
    gated = run_qtk(*words, "--gate", "--json")
    assert gated.returncode == 3
    assert "humaneval-x python: +0.00 points, at worst -47.42 points, tolerance 2: 3 tasks are too few" in gated.stderr
    assert json.loads(gated.stdout)["rows"][0]["verdict"] == "too few tasks to tell"


def test_a_gate_without_any_verdict_fails():
    metric = HarnessMetric(
        name="perplexity", filter="none", value=9.0, standard_error=None, higher_is_better=False, documents={"0": 9.0}
    )
    score = HarnessScore(
        name="own", version="1", examples=0, file_sha256="0", cut=0, metrics=[metric], tasks={"0": "d"}
    )
    scored = result({}, scores=[score])
    comparison = compare(scored, scored, CompareOptions())
    assert [row.verdict for row in comparison.rows] == [None]
    assert "there is nothing to go by" in comparison.gate_failure


def test_it_is_told_how_many_of_the_tasks_were_scored():
    source = TaskSource("humaneval-x", "python", "x.jsonl", "0", whole=164)
    few = score_programs(source, {f"T/{n}": ["failed"] for n in range(3)}, [1])
    assert few.rows()[0][:6] == ("humaneval-x", "python", "3 of 164", "pass@1", 0.0, "0.0 to 56.1")
    [row] = compare(result({}, scores=[few]), result({}, scores=[few]), CompareOptions()).rows
    assert row.cells()[2] == "3 of 164"
    assert "± 0" not in str(row.cells())


def test_a_comparison_of_earlier_words_is_read(tmp_path):
    text = compare(BEFORE, AFTER, CompareOptions()).model_dump_json()
    for old in ("within tolerance, uncertain", "beyond tolerance, uncertain"):
        (tmp_path / "comparison.json").write_text(text.replace("too few tasks to tell", old))
        assert read_comparison(tmp_path).rows[0].verdict == "too few tasks to tell"


def test_the_published_figures_are_whole_counts_of_tasks():
    baseline = load_baseline("codefuse-deepseek-33b-int4")
    assert baseline is not None
    for language, pair in baseline.scores.items():
        for value in (pair.before, pair.after):
            tasks = value * baseline.tasks / 100
            assert abs(tasks - round(tasks)) < 0.02, (language, value)


def test_results_on_other_terms_are_refused_with_every_reason():
    other = result({"python": {1}}, rules="codefuse", chat_format="model", sha256="1" * 64)
    with pytest.raises(InputError, match=r"(?s)extraction rules.*chat format.*task files differ"):
        compare(result({"python": {1}}, chat_format="none"), other, CompareOptions())
    with pytest.raises(InputError, match="only in one of the two"):
        compare(BEFORE, result({"python": {1}}, tasks=100), CompareOptions())
    with pytest.raises(InputError, match="no suite and language"):
        compare(BEFORE, result({"java": {1}}), CompareOptions())


def test_what_differs_harmlessly_is_noted():
    after = result({"python": {1}, "go": {2}}, decoding={"temperature": 0.2}, sandbox={"level": "bubblewrap"})
    notes = compare(BEFORE, after, CompareOptions()).differences
    assert len(notes) == 3


def test_several_samples_a_task_have_no_mcnemar():
    def sampled(second: str) -> AccuracyResult:
        tasks = {f"T/{n}": ["passed", second] for n in range(4)}
        return result({}, scores=[score_programs(TaskSource("humaneval-x", "go", "x", "0"), tasks, [1])])

    [row] = compare(sampled("passed"), sampled("failed"), CompareOptions()).rows
    assert row.p_value is None
    assert row.difference == -50


def test_likelihoods_are_compared_task_by_task():
    def likely(per_token: list[float], sha256: str = "0") -> AccuracyResult:
        tasks = {f"T/{n}": TaskLikelihood(log_likelihood=10 * value, tokens=10) for n, value in enumerate(per_token)}
        return result({}, scores=[score_likelihood(TaskSource("likelihood", "python", "x.jsonl", sha256), tasks)])

    before, after = likely([-1.0, -2.0, -3.0, -4.0]), likely([-1.1, -2.2, -3.1, -4.2])
    [row] = compare(before, after, CompareOptions()).rows
    assert (row.before, row.after, row.worse) == (-2.5, pytest.approx(-2.65), 4)
    assert row.difference == pytest.approx(-0.15)
    assert row.difference_error == pytest.approx(0.057735 / 2, rel=1e-3)
    assert row.p_value == pytest.approx(2.0e-7, rel=0.1)
    [same] = compare(before, before, CompareOptions()).rows
    assert (same.difference, same.p_value, same.worse, same.verdict) == (0, 1, 0, "within tolerance")
    assert (row.low, row.high) == pytest.approx((-0.15 - 0.0679, -0.15 + 0.0679), abs=1e-3)
    assert row.verdict == "beyond tolerance"
    [alone] = compare(likely([-1.0]), likely([-1.1]), CompareOptions()).rows
    assert alone.verdict == "too few tasks to tell"
    [lost] = compare(before, after, CompareOptions()).beyond
    assert (lost.label, lost.change) == ("likelihood python", "-0.1500 nats per token")
    assert compare(before, after, CompareOptions(likelihood_tolerance=0.2)).beyond == []
    with pytest.raises(InputError, match="task files differ"):
        compare(before, likely([-1.0, -2.0, -3.0, -4.0], "1"), CompareOptions())


def test_answers_from_a_file_are_compared_with_a_models_and_that_is_noted():
    model = result({"python": {1}}, chat_format="none", decoding={"temperature": 0.0})
    given = result({"python": {2}}, model=None, answers="a.jsonl")
    for before, after, side in ((model, given, "after"), (given, model, "before")):
        [note] = compare(before, after, CompareOptions()).differences
        assert f"the answers of {side} come from a file" in note
    with pytest.raises(InputError, match="chat format: none before, model after"):
        compare(model, result({"python": {1}}, chat_format="model"), CompareOptions())


def test_small_probabilities_are_not_0_and_likelihoods_are_drawn_too(tmp_path, run_qtk):
    paths = []
    for name, shift in (("before", 0.0), ("after", -0.1)):
        tasks = {f"T/{n}": TaskLikelihood(log_likelihood=-n + 10 * shift * (n + 9), tokens=10) for n in range(1, 60)}
        paths.append(tmp_path / f"{name}.json")
        likely = [score_likelihood(TaskSource("likelihood", "python", "x.jsonl", "0"), tasks)]
        paths[-1].write_text(result({}, scores=likely).model_dump_json())
    out = tmp_path / "c"
    done = run_qtk("bench", "compare", *paths, "-o", out, "--plot", "c.svg", "--gate", env={"COLUMNS": "250"})
    assert done.returncode == 3
    assert "nats" in done.stderr
    assert "e-" in done.stdout
    assert "beyond tolerance" in done.stdout
    assert json.loads((out / "comparison.json").read_text())["rows"][0]["verdict"] == "beyond tolerance"
    assert b"<svg" in (out / "c.svg").read_bytes()


def test_the_command_prints_writes_draws_and_gates(tmp_path, run_qtk):
    paths = []
    for name, content in (("before", BEFORE), ("after", AFTER)):
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(content.model_dump_json())
    plain = run_qtk("bench", "compare", *paths)
    assert plain.returncode == 0, plain.stderr
    assert "lost: T/0, T/1" in plain.stdout
    assert "78.65 -> 78.05" in plain.stdout
    out = tmp_path / "c"
    words = ("bench", "compare", *paths)
    gated = run_qtk(*words, "--tolerance", "0.5", "--gate", "--json", "-o", out, "--plot", "c.svg")
    assert gated.returncode == 3
    assert "humaneval-x python: -0.61 points, at worst -3.084 points, tolerance 0.5" in gated.stderr
    printed = json.loads(gated.stdout)
    assert json.loads((out / "comparison.json").read_text()).items() <= printed.items()
    assert (printed["passed"], printed["verdict"]) == (False, "too few tasks to tell")
    assert b"<svg" in (out / "c.svg").read_bytes()
    assert [finding.status for finding in verify_chain(out)] == ["ok"] * 4
    assert run_qtk(*words, "-o", out).returncode == 2
    assert run_qtk(*words, "--plot", tmp_path / "alone.svg").returncode == 0
    assert b"<svg" in (tmp_path / "alone.svg").read_bytes()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("-o", "c.json"), "-o names a directory now, into which result.json is written: give -o c."),
        (("--plot", "c.xyz"), "the name of a plot ends in .svg"),
        (("-o", "c", "--plot", "pictures/c.svg"), "give --plot c.svg"),
        (("--baseline", "nobody"), "There is no baseline 'nobody'"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, run_qtk, words, complaint):
    (tmp_path / "before.json").write_text(BEFORE.model_dump_json())
    done = run_qtk("bench", "compare", "before.json", "before.json", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["before.json"]


def test_a_comparison_is_not_a_result(tmp_path, run_qtk):
    (tmp_path / "c.json").write_text(compare(BEFORE, AFTER, CompareOptions()).model_dump_json())
    done = run_qtk("bench", "compare", tmp_path / "c.json", tmp_path / "c.json")
    assert done.returncode == 2
    assert "is not a result of `qtk bench accuracy`" in done.stderr


def test_results_that_were_edited_are_not_compared(tmp_path, run_qtk):
    for name, content in (("before", BEFORE), ("after", AFTER)):
        measure_into(tmp_path / name, "accuracy", CompareOptions(), {}, lambda content=content: content)
    words = ("bench", "compare", tmp_path / "before", tmp_path / "after", "--tolerance", "90", "--gate")
    assert run_qtk(*words).returncode == 0
    result_file = tmp_path / "after" / "result.json"
    result_file.write_text(result_file.read_text().replace('"failed"', '"passed"'))
    edited = run_qtk(*words)
    assert edited.returncode == 3
    assert "not what was measured" in edited.stderr
    assert str(result_file) in edited.stderr
    (tmp_path / "after" / "qtk-manifest.json").unlink()
    unproved = run_qtk(*words)
    assert unproved.returncode == 3
    assert "has no manifest" in unproved.stderr


def test_a_task_without_a_verdict_is_not_a_result():
    with pytest.raises(ValueError, match="tasks without a verdict: T/0"):
        score_programs_of({"T/0": []})


def score_programs_of(tasks: dict[str, list[str]]) -> ProgramsScore:
    [score] = result({"python": {1}}).scores
    return ProgramsScore.model_validate({**score.model_dump(), "tasks": tasks})
