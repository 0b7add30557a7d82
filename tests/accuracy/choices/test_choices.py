"""Sets of questions: their data and prompts, the letter in an answer, perplexity as defined, and both ways compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from qtk.bench.accuracy.accuracy_run import Output, run_accuracy
from qtk.bench.accuracy.answer_source import AskedModel
from qtk.bench.accuracy.choices.asking import Asking, option_losses
from qtk.bench.accuracy.choices.loading import load_set
from qtk.bench.accuracy.choices.questions import answer_part, certain, picked, question
from qtk.bench.accuracy.choices.rows import QuestionRow, read_set
from qtk.bench.accuracy.jsonl import write_row
from qtk.bench.accuracy.model_source import ModelSource
from qtk.bench.accuracy.options import AccuracyOptions, ModelOptions
from qtk.bench.accuracy.results.choices import ChoiceAnswer, score_choices
from qtk.bench.accuracy.results.score import CompareOptions, TaskSource
from qtk.bench.accuracy.suites.choice_sets import ChoiceSet
from qtk.bench.accuracy.suites.suites import MissingData, SuitePart, chosen_parts, load_suite
from qtk.engines.build import build_engine
from qtk.engines.options import BuildOptions
from qtk.engines.sessions.session import DecoderSession
from qtk.errors import InputError

NLP = load_suite("nlp")


@pytest.fixture(scope="module")
def session(tiny, tmp_path_factory) -> DecoderSession:
    out = tmp_path_factory.mktemp("engine") / "engine"
    build_engine(
        tiny("llama"), out, BuildOptions(accuracy_level=0, max_input_len=400, max_output_len=64, max_batch_size=4)
    )
    return DecoderSession.open(out, 2)


def own_set(**changes: object) -> ChoiceSet:
    settings: dict[str, object] = {
        "title": "Own", "file": "own/own.jsonl", "questions": 3, "labels": [["yes"], ["no"]], "options": ["Yes", "No"],
        "ask": "{{ text }} Right?", "cue": "Answer:", "text": "{{ text }} {{ option }}", "pick": "first_option",
    }  # fmt: skip
    return ChoiceSet(**{**settings, **changes})


def own_part(**changes: object) -> SuitePart:
    return SuitePart(NLP.model_copy(update={"name": "s", "sets": {"own": own_set(**changes)}}), "own", True)


# What the published files look like, one row of our own each: the reader's name tells the set.
ROWS = {
    "afqmc": ({"sentence1": "怎么还款", "sentence2": "如何还钱", "label": "1"}, 1, "问题二：如何还钱"),
    "chid": ({"candidates": list("甲乙丙丁戊己庚"), "content": "他#idiom#。", "answer": 2}, 2, "他______。"),
    "wic": ({"word": "run", "sentence1": "Run!", "sentence2": "A run.", "label": "false"}, 1, 'Does "run" mean'),
    "wsc": (
        {
            "text": "The boy saw Tim when he came.", "label": "true",
            "target": {"span1_index": 0, "span1_text": "The boy", "span2_index": 5, "span2_text": "he"},
        },
        0, "* The boy * saw Tim when # he # came.",
    ),
    "copa": (
        {"premise": "It rained.", "choice1": "It was wet.", "choice2": "It was {{ dry }}.", "question": "effect", "label": 1},
        1, "B. It was {{ dry }}.",
    ),
    "cmnli": ({"sentence1": "甲", "sentence2": "乙", "label": "neutral"}, 2, "C. 无关"),
    "ocnli": ({"sentence1": "甲", "sentence2": "乙", "label": "contradiction"}, 1, "B. 矛盾"),
    "ax-b": ({"sentence1": "It is.", "sentence2": "It is not.", "label": "not_entailment"}, 1, "It is not."),
    "ax-g": ({"premise": "He sat.", "hypothesis": "He stood.", "label": "entailment"}, 0, "A. Yes"),
    "rte": ({"premise": "He sat.", "hypothesis": "He stood.", "label": "not_entailment"}, 1, "He stood."),
    "csl": ({"abst": "摘要文", "keyword": ["词一", "词二"], "label": "1"}, 1, "关键词：词一，词二"),
    "eprstmt": ({"sentence": "很好", "label": "Negative"}, 1, "B. 消极"),
    "arc-c": (
        {
            "question": {"stem": "Why?", "choices": [{"text": t, "label": t} for t in "1234"]}, "answerKey": "3",
        },
        2, "Question: Why?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_row_of_each_layout_becomes_its_question(name, tmp_path):
    row, gold, shown = ROWS[name]
    path = tmp_path / Path(NLP.sets[name].file).name
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    found = load_set(NLP, name, tmp_path, None, hub=False)
    [one] = [question(NLP.sets[name], row) for row in found.rows]
    assert one.gold == gold
    assert shown in one.prompt
    assert one.prompt.endswith(NLP.sets[name].cue)
    assert len(set(one.texts)) == one.options


def test_rows_without_an_answer_are_left_out_and_broken_ones_are_named(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text('{"text": "a", "label": "-"}\n{"text": "b", "label": "NO"}\n')
    assert [row.gold for row in read_set("own", own_set(), path)] == [1]
    path.write_text('{"text": "a"}\n{"text": "b", "label": "no"}\n{"text": "b"}\n')
    with pytest.raises(InputError, match=r"(?s)row 1: no field 'label'.*row 3"):
        read_set("own", own_set(), path)
    with pytest.raises(InputError, match=r"own/0.*nothing"):
        question(own_set(ask="{{ nothing }}"), QuestionRow("own/0", {"text": "a"}, (), 0))


def test_dialogues_have_several_questions_of_up_to_four_options(tmp_path):
    passages = [[["甲：你好", "乙：好"], [{"question": "谁？", "choice": list("一二三"), "answer": "二"}] * 2, "1"]]
    (tmp_path / "CLUE_C3_dev_0.json").write_text(json.dumps(passages, indent=1))
    rows = load_set(NLP, "c3", tmp_path, None, hub=False).rows
    assert [(row.id, row.gold, len(row.options)) for row in rows] == [("c3/0.0", 1, 3), ("c3/0.1", 1, 3)]
    assert question(NLP.sets["c3"], rows[0]).texts[1] == "甲：你好\n乙：好\n问题：谁？\n答案：二"


def write_subjects(folder: Path, split: str, header: bool) -> None:
    (folder / split).mkdir(parents=True)
    for subject in ("anatomy", "college_law"):
        lines = [f"{split} {subject} {n},w,x,y,z,{'ABCD'[n % 4] if not header else n % 4}" for n in range(6)]
        head = ["question,choice0,choice1,choice2,choice3,answer"] if header else []
        (folder / split / f"{subject}_{split}.csv").write_text("\n".join(head + lines) + "\n")


@pytest.mark.parametrize("header", [False, True])
def test_subjects_with_examples_in_front_with_and_without_a_header(tmp_path, header):
    for split in ("dev", "test"):
        write_subjects(tmp_path / "mmlu", split, header)
    rows = load_set(NLP, "mmlu", tmp_path, None, hub=False).rows
    assert len(rows) == 12
    assert [row.gold for row in rows[:6]] == [0, 1, 2, 3, 0, 1]
    one = question(NLP.sets["mmlu"], rows[7])
    assert one.prompt.count("Answer:") == 6
    assert one.prompt.startswith("Question about college law: dev college_law 0\nA. w\nB. x\nC. y\nD. z\nAnswer: A\n\n")
    assert one.texts[2] == one.prompt + " C"
    sample = load_set(NLP, "mmlu", tmp_path, 4, hub=False).rows
    assert len(sample) == 4
    assert sample == load_set(NLP, "mmlu", tmp_path, 4, hub=False).rows
    shutil.rmtree(tmp_path / "mmlu" / "dev")
    with pytest.raises(InputError, match="lacks the examples"):
        load_set(NLP, "mmlu", tmp_path, None, hub=False)


def test_a_set_that_is_not_there_is_named_with_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("QTK_DATA", raising=False)
    with pytest.raises(MissingData, match=r"(?s)C-Eval.*nlp/ceval/val.*--data.*--hub"):
        load_set(NLP, "ceval", tmp_path, None, hub=False)


def test_the_hub_is_read_with_the_names_of_classes(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"text": ["a", "b", "c"], "label": [1, 0, -1]}
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["yes", "no"])})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "hub" / "test.parquet"))
    about = own_set(hub={"id": str(tmp_path / "hub"), "split": "test"})
    suite = NLP.model_copy(update={"sets": {"own": about}})
    found = load_set(suite, "own", tmp_path, None, hub=True).rows
    assert [(row.fields["text"], row.gold) for row in found] == [("a", 1), ("b", 0)]
    gone = own_set(hub={"id": str(tmp_path / "absent"), "split": "test"})
    with pytest.raises(InputError, match="absent cannot be loaded from the hub"):
        load_set(NLP.model_copy(update={"sets": {"own": gone}}), "own", tmp_path, None, hub=True)


def test_a_suite_without_any_of_its_sets_is_refused_before_anything_runs(tmp_path, tiny, monkeypatch):
    """HumanEval comes with its package and belongs to the suite: it alone would look like a result."""
    monkeypatch.delenv("QTK_DATA", raising=False)
    with pytest.raises(MissingData, match=r"(?s)None of the sets of nlp was found.*CLUE_AFQMC_dev"):
        run_accuracy(
            AccuracyOptions(suite=("nlp",)),
            ModelSource(tiny("llama"), ModelOptions(), "qtk"),
            Output(tmp_path / "out"),
        )
    assert list(tmp_path.iterdir()) == []


def test_the_suite_is_eighteen_sets():
    parts = chosen_parts("nlp")
    assert len(parts) == 18
    assert [part.suite.name for part in parts[-2:]] == ["humaneval", "mbpp"]
    assert not any(part.required for part in parts)
    assert [part.required for part in chosen_parts("nlp:wic,copa")] == [True, True]


@pytest.mark.parametrize(
    ("rule", "text", "option"),
    [
        ("first_capital", "b, 不，是B", 1),
        ("first_capital", "答案是 E", None),
        ("first_capital", "The answer is A", None),
        ("first_option", "A good question. The answer is (B).", 1),
        ("first_option", "**C**", 2),
        ("first_option", "Answer: **D**", 3),
        ("first_option", "Both; I choose it, option C", 2),
        ("first_option", "E or F", None),
        ("first_option", "答案应该是：B", 1),
        ("first_option", "It's Apple, so D.", 3),
        ("first_option", "", None),
    ],
)
def test_the_letter_in_an_answer(rule, text, option):
    assert picked(rule, text, 4) == option


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("rule", ["first_capital", "first_option"])
def test_an_answer_is_certain_only_when_no_ending_changes_it(rule, chat):
    answers = [" A. wet\nB", "A good one. The answer is B, not C", "\n\n b A\nC", "option Dogs. Answer: C.", "x" * 9]
    stopped = 0
    for answer in answers:
        for end in range(len(answer) + 1):
            if certain(rule, answer[:end], 4, chat=chat):
                stopped += end < len(answer)
                now = picked(rule, answer_part(answer[:end], chat=chat), 4)
                for rest in ("", "B", "\nAnswer: D", " is A", answer[end:]):
                    assert picked(rule, answer_part(answer[:end] + rest, chat=chat), 4) == now
    assert stopped


def test_losses_are_the_texts_cross_entropy_over_all_tokens_shared_or_not(session, tiny):
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(tiny("llama"), dtype=torch.float32)
    random = np.random.default_rng(0)
    start = random.integers(2, 258, 290).tolist()
    questions = [
        [[*start, token] for token in (5, 9, 11)],  # one run for the three
        [start[:7], [*start[:5], 3, 4, 5, 6], [*start[:5], 8]],
        [[*start[:20], 3], [*start[:20], 3, 4]],
        [[*start[:9], 4]] * 2,
    ]
    found = dict(option_losses(session, questions))
    for number, texts in enumerate(questions):
        for text, loss in zip(texts, found[number], strict=True):
            ids = torch.tensor([text])
            with torch.no_grad():
                expected = float(reference(ids, labels=ids).loss) * (len(text) - 1) / len(text)
            assert loss == pytest.approx(expected, abs=1e-4)


def test_questions_are_answered_in_both_ways_and_a_stopped_run_goes_on(session, tmp_path):
    rows = [QuestionRow(f"own/{n}", {"text": f"text {n} " * (n + 1)}, ("Yes", "No"), n % 2) for n in range(6)]
    part = own_part(answer_tokens=6)

    def ask(directory: Path) -> dict[str, ChoiceAnswer]:
        directory.mkdir(exist_ok=True)
        return Asking(AskedModel(session, ModelOptions()), part, directory).answers(rows)[0]

    whole = ask(tmp_path / "a")
    lines = (tmp_path / "a" / "choices.jsonl").read_text().splitlines()
    assert len(lines) == 12
    (tmp_path / "b").mkdir()
    # Changed, so that it shows whether they are asked again; and the half line of a killed run.
    with (tmp_path / "b" / "choices.jsonl").open("a") as stream:
        for row in map(json.loads, lines[:5]):
            write_row(stream, {**row, "answer": 1 - row["gold"]})
        stream.write(lines[5][:20])
    again = ask(tmp_path / "b")
    for line in map(json.loads, lines[:5]):
        assert getattr(again[line["task_id"]], line["mode"]) == 1 - line["gold"]
    for line in map(json.loads, lines[5:]):
        assert getattr(again[line["task_id"]], line["mode"]) == getattr(whole[line["task_id"]], line["mode"])
    assert list(again) == [row.id for row in rows]


def test_examples_that_do_not_fit_are_left_out_and_too_long_questions_named(session, tmp_path):
    shots = tuple(QuestionRow(f"shot/{n}", {"text": "x" * 100}, ("Yes", "No"), 0) for n in range(5))
    part = own_part(shots=5, shots_file="dev", answer_tokens=4)
    rows = [QuestionRow("own/0", {"text": "short"}, ("Yes", "No"), 0, "", shots)]
    asking = Asking(AskedModel(session, ModelOptions()), part, tmp_path)
    answers, fewer = asking.answers(rows)
    assert (len(answers), fewer) == (1, 1)
    with pytest.raises(InputError, match=r"(?s)464 tokens.*own/1: 5\d\d tokens"):
        asking.answers([*rows, QuestionRow("own/1", {"text": "x" * 500}, ("Yes", "No"), 0)])


def scored(generation: list[int], perplexity: list[int], mean: str = "questions"):
    """A set of questions whose right option is 0, in two subjects of unlike size."""
    tasks = {
        f"own/{n}": ChoiceAnswer(subject="a" if n < 2 else "b", gold=0, generation=g, perplexity=p)
        for n, (g, p) in enumerate(zip(generation, perplexity, strict=True))
    }
    return score_choices(TaskSource("nlp", "own", "own.jsonl", "0"), "Own", mean, tasks, 0)


def test_the_higher_of_the_two_counts_and_subjects_weigh_alike():
    score = scored([0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0])
    assert (score.generation.value, score.perplexity.value) == (pytest.approx(2 / 6), pytest.approx(4 / 6))
    assert score.kept == "perplexity"
    by_subject = scored([0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1], mean="subjects")
    assert by_subject.generation.value == pytest.approx(0.5)
    assert by_subject.perplexity.value == pytest.approx((1 + 1 / 4) / 2)
    assert by_subject.perplexity.standard_error == pytest.approx(0.25 / 2)


def test_both_sides_are_compared_by_the_float_models_choice():
    before = scored([0, 0, 0, 0, 0, 1], [0, 0, 0, 1, 1, 1])  # generation is better
    after = scored([0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0])  # now perplexity would be
    [row] = before.compare(after, CompareOptions())
    assert row.mode == "generation"
    assert (row.before, row.after) == (pytest.approx(500 / 6), pytest.approx(300 / 6))
    assert (row.other_before, row.other_after, row.free_after) == (pytest.approx(50), pytest.approx(100), 100)
    assert (row.lost, row.gained) == (["own/2", "own/3", "own/4"], ["own/5"])
    assert row.p_value == pytest.approx(0.625)
    assert row.verdict == "too few tasks to tell"


def test_sets_are_scored_and_compared_from_the_command_line(tmp_path, tiny, run_qtk):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("rte", "eprstmt"):
        row, _, _ = ROWS[name]
        text = "".join(json.dumps({**row, "number": n}) + "\n" for n in range(5))
        (data / Path(NLP.sets[name].file).name).write_text(text)
    words = ("bench", "accuracy", tiny("llama"), "--data", data, "--max-new-tokens", 4)
    clean = {"QTK_DATA": ""}
    done = run_qtk(*words, "--suite", "nlp:rte,eprstmt", "--limit", 3, "-o", tmp_path / "out", "--json", env=clean)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [(score["name"], len(score["tasks"])) for score in result["scores"]] == [("rte", 3), ("eprstmt", 3)]
    assert result["sandbox"] == {}
    compared = run_qtk("bench", "compare", tmp_path / "out", tmp_path / "out", "--plot", tmp_path / "p.svg")
    assert compared.returncode == 0, compared.stderr
    assert "the way of asking in which" in compared.stdout
    absent = run_qtk(*words, "--suite", "nlp:rte,ceval,mmlu", "-o", tmp_path / "no", env=clean)
    assert absent.returncode == 2
    assert "C-Eval" in absent.stderr
    assert not (tmp_path / "no").exists()


def test_real_files_hold_what_the_suite_says(shared_data):
    for name, about in NLP.sets.items():
        if name == "ceval":
            continue  # not among the shared data
        rows = load_set(NLP, name, shared_data, None, hub=False).rows
        assert len(rows) == about.questions, name
        for row in rows[:: len(rows) // 50 or 1]:
            one = question(about, row)
            assert len(set(one.texts)) == one.options or name == "arc-c", name
            assert 0 <= one.gold < one.options
