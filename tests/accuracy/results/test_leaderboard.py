"""`qtk bench leaderboard`: the published Win Rates are reproduced, and a result is ranked among published models."""

from __future__ import annotations

import json

import pytest

from qtk.bench.accuracy.results.leaderboard import LeaderboardOptions, leaderboard, load_reference, win_rates
from qtk.bench.accuracy.results.programs import score_programs
from qtk.bench.accuracy.results.result import AccuracyResult
from qtk.bench.accuracy.results.score import TaskSource
from qtk.bench.accuracy.suites.suites import chosen_parts, load_suite
from qtk.checkpoint.manifest import verify_chain
from qtk.errors import InputError


def result(passed: dict[tuple[str, str], int], tasks: int | None = None) -> AccuracyResult:
    """A result in which so many tasks of each suite and language passed."""
    scores = []
    for (suite, language), number in passed.items():
        count = tasks or load_suite(suite).languages[language].tasks
        verdicts = {f"T/{n}": ["passed" if n < number else "failed"] for n in range(count)}
        scores.append(score_programs(TaskSource(suite, language, "x.jsonl", "0" * 64), verdicts, [1]))
    return AccuracyResult(
        qtk_version="0", model="m", answers=None, rules="qtk", chat_format=None, decoding={}, sandbox={},
        scores=scores, seconds=0.0, machine={},
    )  # fmt: skip


@pytest.mark.parametrize("name", ["bigcode", "bigcode-2023"])
def test_published_averages_follow_from_the_scores(name):
    table = load_reference(name)
    known = {model: row for model, row in table.models.items() if row.average is not None}
    assert len(known) >= 10
    for model, row in known.items():
        assert sum(row.scores) / len(row.scores) == pytest.approx(row.average, abs=0.0051), model
        assert row.source in table.sources


def test_published_win_rates_are_reproduced():
    table = load_reference("bigcode-2023")
    rates = dict(zip(table.models, win_rates([row.scores for row in table.models.values()]), strict=True))
    published = {model: row.win_rate for model, row in table.models.items() if row.win_rate is not None}
    assert len(published) == 10
    assert {model: rates[model] for model in published} == pytest.approx(published, abs=0.0051)


def test_the_leaderboards_suite_is_what_its_table_ranks():
    parts = chosen_parts("leaderboard")
    assert [part.name for part in parts] == list(load_reference("bigcode").languages)
    assert {part.suite.name for part in parts} == {"humaneval", "multipl-e"}
    found = {(part.suite.name, part.name): 3 for part in parts}
    assert leaderboard({"x": result(found)}, LeaderboardOptions()).absent == []
    assert [(part.suite.name, part.name) for part in chosen_parts("leaderboard:py,js")] == [
        ("humaneval", "python"), ("multipl-e", "javascript"),
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"no go\. Languages: python, java"):
        chosen_parts("leaderboard:go")


def test_ties_share_their_mean_rank():
    assert win_rates([[3, 1], [2, 1], [2, 0]]) == [2.75, 2.0, 1.25]


def test_results_are_ranked_one_at_a_time_over_the_languages_they_share():
    best = result({("humaneval", "python"): 164, ("multipl-e", "lua"): 161, ("multipl-e", "go"): 3})
    worst = result({("humaneval", "python"): 0, ("multipl-e", "lua"): 0, ("multipl-e", "d"): 5})
    ranked = leaderboard({"best": best, "worst": worst}, LeaderboardOptions())
    assert ranked.languages == ["python", "lua"]
    assert "d" in ranked.absent
    assert ranked.models == 17
    rows = {row.model: row for row in ranked.standings}
    assert rows["best"].win_rate == {"best": 17.0}
    assert rows["worst"].win_rate == {"worst": 1.0}
    codefuse = rows["CodeFuse-DeepSeek-33b"]
    # One place is lost to a better model, none to a worse one.
    assert codefuse.win_rate["worst"] - codefuse.win_rate["best"] == pytest.approx(1.0)
    assert ranked.standings[0].model == "best"
    assert ranked.standings[-1].model == "worst"


def test_parts_of_suites_and_results_without_a_column_are_refused():
    with pytest.raises(InputError, match=r"(?s)in part.*2 of 164"):
        leaderboard({"x": result({("humaneval", "python"): 1}, tasks=2)}, LeaderboardOptions())
    with pytest.raises(InputError, match="no language in common"):
        leaderboard({"x": result({("mbpp", "python"): 1})}, LeaderboardOptions())


def test_the_command_prints_writes_and_takes_a_table_of_ones_own(tmp_path, run_qtk):
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "result.json").write_text(result({("humaneval", "python"): 82}).model_dump_json())
    own = tmp_path / "own.yaml"
    own.write_text(
        "name: own\nsummary: ours\nsource: ours\nlanguages: [python]\nsources: {a: b}\n"
        "models:\n  above: {source: a, scores: [60]}\n  equal: {source: a, scores: [50]}\n"
    )
    words = ("bench", "leaderboard", tmp_path / "scores", "--reference", own)
    done = run_qtk(*words, "--json", "-o", tmp_path / "table")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert json.loads((tmp_path / "table" / "result.json").read_text()).items() <= printed.items()
    rates = {row["model"]: list(row["win_rate"].values()) for row in printed["standings"]}
    assert rates == {"above": [3.0], "equal": [1.5], str(tmp_path / "scores"): [1.5]}
    plain = run_qtk("bench", "leaderboard", tmp_path / "scores")
    assert "CodeFuse-DeepSeek-33b" in plain.stdout
    assert "1 to 17" in plain.stdout
    assert {finding.status for finding in verify_chain(tmp_path / "table")} == {"ok"}
    assert run_qtk(*words, "-o", tmp_path / "table").returncode == 2
    assert "-o names a directory now" in run_qtk(*words, "-o", tmp_path / "other.json").stderr
    own.write_text(own.read_text().replace("[60]", "[60, 61]"))
    wrong = run_qtk(*words)
    assert wrong.returncode == 2
    assert "above: 2 scores" in wrong.stderr
