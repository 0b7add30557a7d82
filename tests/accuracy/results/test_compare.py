"""`qtk bench compare`: flips, the paired test and the verdict, on results with known contents."""

from __future__ import annotations

import json

import pytest

from qtk.bench.accuracy.likelihood import TaskLikelihood, score_likelihood
from qtk.bench.accuracy.results.comparison import CompareOptions, compare, load_baseline, verdict
from qtk.bench.accuracy.results.result import AccuracyResult, score_language
from qtk.errors import InputError


def result(
    passed: dict[str, set[int]], *, tasks: int = 164, sha256: str = "0" * 64, **changes: object
) -> AccuracyResult:
    """A result of humaneval-x in which these task numbers of each language passed."""
    scores = [
        score_language(
            "humaneval-x", language, "x.jsonl", sha256,
            {f"T/{n}": ["passed" if n in numbers else "failed"] for n in range(tasks)}, [1],
        )
        for language, numbers in passed.items()
    ]  # fmt: skip
    settings: dict[str, object] = {
        "qtk_version": "0", "model": "m", "answers": None, "rules": "qtk", "prompt_format": None, "decoding": {},
        "sandbox": {"level": "namespaces"}, "scores": scores, "seconds": 0.0, "machine": {},
    }  # fmt: skip
    return AccuracyResult(**{**settings, **changes})


BEFORE = result({"python": set(range(129))})
AFTER = result({"python": set(range(2, 130))})


def test_flips_error_and_p_value():
    [row] = compare(BEFORE, AFTER, CompareOptions()).languages
    assert (row.lost, row.gained) == (["T/0", "T/1"], ["T/129"])
    assert row.before == pytest.approx(100 * 129 / 164)
    assert row.before_error == pytest.approx(3.21, abs=0.01)
    assert row.difference == pytest.approx(-100 / 164)
    assert row.p_value == 1.0
    assert row.verdict == "within tolerance, uncertain"
    assert row.published is not None
    assert (row.published.before, row.published.after) == (78.65, 78.05)


def test_verdicts():
    assert verdict(0.0, 0.0, 2.0) == "within tolerance"
    assert verdict(-2.0, 0.0, 2.0) == "within tolerance"
    assert verdict(-1.0, 0.4, 2.0) == "within tolerance"
    assert verdict(-1.0, 1.0, 2.0) == "within tolerance, uncertain"
    assert verdict(-3.0, 1.0, 2.0) == "beyond tolerance, uncertain"
    assert verdict(-9.0, 1.0, 2.0) == "beyond tolerance"
    assert verdict(5.0, None, 2.0) == "within tolerance, uncertain"


def test_the_published_figures_are_whole_counts_of_tasks():
    baseline = load_baseline("codefuse-deepseek-33b-int4")
    assert baseline is not None
    for language, pair in baseline.scores.items():
        for value in (pair.before, pair.after):
            tasks = value * baseline.tasks / 100
            assert abs(tasks - round(tasks)) < 0.02, (language, value)


def test_results_on_other_terms_are_refused_with_every_reason():
    other = result({"python": {1}}, rules="codefuse", prompt_format="chat", sha256="1" * 64)
    with pytest.raises(InputError, match=r"(?s)extraction rules.*prompt format.*task files differ"):
        compare(result({"python": {1}}, prompt_format="plain"), other, CompareOptions())
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
        return result({}, scores=[score_language("humaneval-x", "go", "x", "0", tasks, [1])])

    [row] = compare(sampled("passed"), sampled("failed"), CompareOptions()).languages
    assert row.p_value is None
    assert row.difference == -50


def test_likelihoods_are_compared_task_by_task():
    def likely(per_token: list[float], sha256: str = "0") -> AccuracyResult:
        tasks = {f"T/{n}": TaskLikelihood(log_likelihood=10 * value, tokens=10) for n, value in enumerate(per_token)}
        return result({}, likelihood=[score_likelihood("likelihood", "python", "x.jsonl", sha256, tasks)])

    before, after = likely([-1.0, -2.0, -3.0, -4.0]), likely([-1.1, -2.2, -3.1, -4.2])
    [row] = compare(before, after, CompareOptions()).likelihood
    assert (row.before, row.after, row.worse) == (-2.5, pytest.approx(-2.65), 4)
    assert row.difference == pytest.approx(-0.15)
    assert row.difference_error == pytest.approx(0.057735 / 2, rel=1e-3)
    assert row.p_value == pytest.approx(2.0e-7, rel=0.1)
    [same] = compare(before, before, CompareOptions()).likelihood
    assert (same.difference, same.p_value, same.worse, same.verdict) == (0, 1, 0, "within tolerance")
    assert row.verdict == "beyond tolerance"
    assert compare(before, after, CompareOptions()).beyond == ["likelihood python (-0.1500 nats)"]
    assert compare(before, after, CompareOptions(likelihood_tolerance=0.2)).beyond == []
    with pytest.raises(InputError, match="task files differ"):
        compare(before, likely([-1.0, -2.0, -3.0, -4.0], "1"), CompareOptions())


def test_answers_from_a_file_are_compared_with_a_models_and_that_is_noted():
    model = result({"python": {1}}, prompt_format="plain", decoding={"temperature": 0.0})
    given = result({"python": {2}}, model=None, answers="a.jsonl")
    for before, after, side in ((model, given, "after"), (given, model, "before")):
        [note] = compare(before, after, CompareOptions()).differences
        assert f"the answers of {side} come from a file" in note
    with pytest.raises(InputError, match="prompt format: plain before, chat after"):
        compare(model, result({"python": {1}}, prompt_format="chat"), CompareOptions())


def test_small_probabilities_are_not_0_and_likelihoods_are_drawn_too(tmp_path, run_qtk):
    paths = []
    for name, shift in (("before", 0.0), ("after", -0.1)):
        tasks = {f"T/{n}": TaskLikelihood(log_likelihood=-n + 10 * shift * (n + 9), tokens=10) for n in range(1, 60)}
        paths.append(tmp_path / f"{name}.json")
        likely = [score_likelihood("likelihood", "python", "x.jsonl", "0", tasks)]
        paths[-1].write_text(result({}, likelihood=likely).model_dump_json())
    files = (tmp_path / "c.json", tmp_path / "c.svg")
    done = run_qtk("bench", "compare", *paths, "-o", files[0], "--plot", files[1], "--gate", env={"COLUMNS": "250"})
    assert done.returncode == 3
    assert "nats" in done.stderr
    assert "e-" in done.stdout
    assert "beyond tolerance" in done.stdout
    assert json.loads(files[0].read_text())["likelihood"][0]["verdict"] == "beyond tolerance"
    assert b"<svg" in files[1].read_bytes()
    drawn = run_qtk("bench", "compare", *paths, "-o", tmp_path / "d.json", "--plot", tmp_path / "d.xyz")
    assert drawn.returncode == 2
    assert (tmp_path / "d.json").exists()


def test_the_command_prints_writes_draws_and_gates(tmp_path, run_qtk):
    paths = []
    for name, content in (("before", BEFORE), ("after", AFTER)):
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(content.model_dump_json())
    plain = run_qtk("bench", "compare", *paths)
    assert plain.returncode == 0, plain.stderr
    assert "lost: T/0, T/1" in plain.stdout
    assert "78.65 -> 78.05" in plain.stdout
    files = (tmp_path / "c.json", tmp_path / "c.svg")
    gated = run_qtk(
        "bench", "compare", *paths, "--tolerance", "0.5", "--gate", "--json", "-o", files[0], "--plot", files[1]
    )
    assert gated.returncode == 3
    assert "-0.61 points" in gated.stderr
    assert json.loads(gated.stdout) == json.loads(files[0].read_text())
    assert b"<svg" in files[1].read_bytes()
    again = run_qtk("bench", "compare", *paths, "-o", files[0])
    assert again.returncode == 2
    wrong = run_qtk("bench", "compare", tmp_path / "c.json", paths[1])
    assert wrong.returncode == 2
    assert "no result" in wrong.stderr
