"""A model's side of the accuracy bench: prompts byte for byte, batches, stop rules, and the likelihood of references."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from qtk.bench.accuracy.accuracy_run import Output, run_accuracy
from qtk.bench.accuracy.jsonl import chain_files, read_rows, write_row
from qtk.bench.accuracy.log_probabilities import prompt_and_solution, scored_tokens
from qtk.bench.accuracy.measures.likelihood import reference_likelihoods
from qtk.bench.accuracy.model_source import ModelSource, content_digest
from qtk.bench.accuracy.options import AccuracyOptions, ModelOptions
from qtk.bench.accuracy.programs.generation import ModelAnswers
from qtk.bench.accuracy.programs.prompts import encode, prompt_text
from qtk.bench.accuracy.suites.suites import SuitePart, load_suite
from qtk.bench.accuracy.task import Task
from qtk.checkpoint.manifest import MANIFEST_NAME
from qtk.engines.build import build_engine
from qtk.engines.description import ENGINE_NAME
from qtk.engines.options import BuildOptions
from qtk.engines.sessions.session import DecoderSession, EngineSession
from qtk.errors import InputError
from qtk.models.tokenizer import TextTokenizer
from qtk.release.inspection import inspect_directory

SUITE = load_suite("humaneval")
PART = SuitePart(SUITE, "python", True)


def task(number: int, body: str = "    return x\n", language: str = "python") -> Task:
    return Task(f"T/{number}", language, f"def f{number}(x):\n", body, "", f"f{number}")


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory, write_byte_tokenizer) -> Path:
    """A tiny checkpoint with a byte-level tokenizer."""
    directory = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(tiny("llama"), directory)
    write_byte_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def session(model, tmp_path_factory) -> DecoderSession:
    out = tmp_path_factory.mktemp("engine") / "engine"
    build_engine(model, out, BuildOptions(accuracy_level=0, max_input_len=256, max_output_len=128, max_batch_size=4))
    return DecoderSession.open(out, 2)


def test_prompts_are_byte_for_byte_what_the_formats_say(model):
    tokenizer = TextTokenizer(model)
    suite = load_suite("humaneval-x")
    for language, tag in {
        "python": "# language: Python", "java": "// language: Java", "cpp": "// language: C++",
        "javascript": "// language: JavaScript", "go": "// language: Go",
    }.items():  # fmt: skip
        ids = encode(tokenizer, prompt_text(suite, task(0, language=language), "codefuse"), "codefuse")
        # <s> is plain text in CodeFuse's format, so nothing is added in front.
        wanted = f"<s>human\n{tag}\ndef f0(x):\n<s>bot\n"
        assert ids == tokenizer.encode(wanted, special=False)
        assert tokenizer.decode(ids, skip_special=False) == wanted
    mbpp = Task("P/1", "python", "Write f.", "", "", "f", example_tests=("assert f(1)", "assert f(2)"))
    text = prompt_text(load_suite("mbpp"), mbpp, "codefuse")
    assert text == "Write f.Your code should satisfy these tests:\nassert f(1)\nassert f(2)"
    assert prompt_text(load_suite("mbpp"), mbpp, "none") == '"""\nWrite f.\nassert f(1)\n"""\n'
    chat = tokenizer.decode(encode(tokenizer, prompt_text(SUITE, task(0), "model"), "model"), skip_special=False)
    assert chat.startswith("<s>user\nComplete this Python code.")
    assert chat.endswith("```python\ndef f0(x):\n```</s><s>assistant\n")


def all_answers(session: DecoderSession, tasks: list[Task], options: ModelOptions, finished=frozenset()) -> dict:
    answers = ModelAnswers(session, options, "qtk").answers(PART, tasks, set(finished))
    return {answer.key: answer.generation for answer in answers}


def test_batched_answers_are_those_of_each_task_alone(session):
    tasks = [Task(f"T/{n}", "python", "x = 1\n" * n + f"def f{n}(x):\n", "", "", f"f{n}") for n in range(6)]
    batched = all_answers(session, tasks, ModelOptions(max_new_tokens=24))
    alone = all_answers(session, tasks, ModelOptions(max_new_tokens=24, batch_size=1))
    assert batched == alone
    assert len(batched) == 6
    rest = all_answers(session, tasks, ModelOptions(max_new_tokens=24), finished=list(batched)[:4])
    assert rest == {key: batched[key] for key in list(batched)[4:]}


def test_sampling_is_repeatable_and_greedy_samples_are_refused(session, model):
    options = ModelOptions(max_new_tokens=12, samples=3, temperature=1.0, seed=7)
    first = all_answers(session, [task(0), task(1)], options)
    assert first == all_answers(session, [task(0), task(1)], options)
    assert len(set(first.values())) > 1
    with pytest.raises(InputError, match="temperature"):
        ModelSource(model, ModelOptions(samples=2), "qtk")


def test_a_stopped_run_gets_the_draws_that_it_would_have_had(session):
    tasks = [Task(f"T/{n}", "python", "x = 1\n" * (n % 3) + f"def f{n}(x):\n", "", "", f"f{n}") for n in range(4)]
    options = ModelOptions(max_new_tokens=12, samples=3, temperature=1.0, seed=7)
    whole = all_answers(session, tasks, options)
    finished = list(whole)[:2] + list(whole)[5:6]  # the last of them in the middle of a batch
    rest = all_answers(session, tasks, options, finished=finished)
    assert rest == {key: text for key, text in whole.items() if key not in finished}
    alone = all_answers(session, tasks, options.model_copy(update={"batch_size": 1}))
    assert alone == whole  # nor does it matter what stands beside a row


def test_a_models_content_tells_runs_apart(tmp_path, model):
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    before = content_digest(copy)
    assert content_digest(copy) == before
    weights = next(copy.glob("*.safetensors"))
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert content_digest(copy) != before


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--suite", "likelihood:python", "--save-generations", "kept.jsonl"), "--save-generations keeps"),
        (("--suite", "humaneval", "--k", 10), "pass@10 needs 10 samples of every task. With --samples 1"),
        (("--suite", "humaneval", "--k", 0), "--k: pass@k needs a k of 1 or more, not 0"),
        (("--suite", "lm-eval:arc_easy", "--chat-format", "codefuse"), "does not know --chat-format codefuse"),
        (("--suite", "humaneval", "--suite", "humaneval:python"), "given twice: humaneval python"),
        (("--suite", "lm-eval"), "Suite lm-eval needs the name of a task"),
    ],
)
def test_what_cannot_be_asked_of_a_model_is_refused_first(tmp_path, model, run_qtk, words, complaint):
    done = run_qtk("bench", "accuracy", model, *words, "-o", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_former_spelling_of_the_chat_format_says_how_it_is_written_now(tmp_path, model, run_qtk):
    words = ("--suite", "lm-eval:arc_easy", "--prompt", "codefuse")
    done = run_qtk("bench", "accuracy", model, *words, "-o", "out", cwd=tmp_path)
    assert "qtk: --prompt is now --chat-format codefuse." in done.stderr
    assert "does not know --chat-format codefuse" in done.stderr


def test_engines_that_give_tokens_only_write_programs_but_read_no_likelihoods(tmp_path, session):
    class TokensOnly(EngineSession):
        generate = session.generate  # type: ignore[assignment]

    tokens = TokensOnly(session.directory, session.description)
    options = ModelOptions(max_new_tokens=8)
    assert all_answers(tokens, [task(0)], options) == all_answers(session, [task(0)], options)  # type: ignore[arg-type]
    engine = tmp_path / "engine"
    shutil.copytree(session.directory, engine)
    description = json.loads((engine / ENGINE_NAME).read_text())
    (engine / ENGINE_NAME).write_text(json.dumps({**description, "backend": "tensorrt-llm"}))
    (engine / MANIFEST_NAME).unlink()  # which knows another engine.json
    source = ModelSource(engine, ModelOptions(), "qtk")
    with pytest.raises(
        InputError, match=r"needed for likelihood\. The engine's backend, tensorrt-llm, gives tokens only"
    ):
        run_accuracy(AccuracyOptions(suite=("likelihood:python",)), source, Output(tmp_path / "out"))


def test_prompts_that_do_not_fit_are_named_before_anything_is_generated(session):
    long = Task("T/long", "python", "x = 1\n" * 100, "", "", "f")
    with pytest.raises(InputError, match="T/long: 599 tokens"):
        all_answers(session, [task(0), long], ModelOptions(max_new_tokens=24))


def token_log_likelihoods(session: DecoderSession, rows: list[list[int]]) -> list[np.ndarray]:
    """For each row of token ids the natural log-probability of ids[1:], each given the tokens before it."""
    values = {index: values for index, values, _ in scored_tokens(session, rows, [1] * len(rows))}
    return [values[index] for index in range(len(rows))]


def test_likelihoods_are_transformers_cross_entropy_padded_or_not(session, model):
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    rows = [
        np.random.default_rng(n).integers(2, 258, length).tolist() for n, length in enumerate((5, 370, 17, 2))
    ]  # several chunks beside one
    together = token_log_likelihoods(session, rows)
    for row, values in zip(rows, together, strict=True):
        ids = torch.tensor([row])
        with torch.no_grad():
            loss = float(reference(ids, labels=ids).loss)
        assert -values.mean() == pytest.approx(loss, abs=1e-4)
        np.testing.assert_allclose(token_log_likelihoods(session, [row])[0], values, atol=1e-5)


def test_the_likelihood_of_a_reference_counts_its_own_tokens_only(session, tmp_path):
    tasks = [task(number, "    return x + 1\n" * (number + 1)) for number in range(6)]
    found = reference_likelihoods(session, PART, tasks, tmp_path)
    assert list(found) == [one.task_id for one in tasks]
    for one in tasks:
        ids, start = prompt_and_solution(session.tokenizer, one)
        values = token_log_likelihoods(session, [ids])[0]
        assert found[one.task_id].tokens == len(one.reference)  # one token a byte
        assert found[one.task_id].log_likelihood == pytest.approx(values[start - 1 :].sum(), abs=1e-4)
    file = tmp_path / "likelihoods.jsonl"
    lines = file.read_text().splitlines()
    assert len(lines) == 6
    # A stopped run's: one task changed, so that it shows that it is not read again, and half a line.
    changed = {**json.loads(lines[0]), "log_likelihood": -1.0}
    for written in (file, *chain_files(tmp_path)):
        written.unlink()
    with file.open("a") as stream:
        write_row(stream, changed)
        stream.write(lines[1][:30])
    again = reference_likelihoods(session, PART, tasks, tmp_path)
    assert again.pop(changed["task_id"]).log_likelihood == -1.0
    for name, one in again.items():
        assert one.log_likelihood == pytest.approx(found[name].log_likelihood, abs=1e-4)


@pytest.fixture
def own_suite(tmp_path) -> Path:
    """A suite of three tasks whose answers are programs, with its data beside it."""
    rows = [
        {
            "task_id": f"Own/{n}", "prompt": f"def f{n}(x):\n", "entry_point": f"f{n}",
            "canonical_solution": "    return x\n", "test": "def check(f):\n    assert f(1) == 1\n",
        }
        for n in range(3)
    ]  # fmt: skip
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    body = "summary: ours\nsource: ours\nlicence: Apache-2.0\nlayout: humaneval\n"
    body += "languages:\n  python: {file: own.jsonl, tasks: 3}\n"
    for name, kind in (("own", "programs"), ("own-likelihood", "likelihood")):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\nkind: {kind}\n{body}")
    return tmp_path / "own.yaml"


def test_a_stopped_sampled_run_goes_on_with_another_batch_size(tmp_path, own_suite, session):
    """Each row of a batch has a seed of its own, so the number of rows at once decides nothing."""
    options = AccuracyOptions(suite=(str(own_suite),), data=tmp_path)

    def asked(batch_size: int) -> ModelSource:
        sampled = ModelOptions(max_new_tokens=8, samples=4, temperature=1.0, batch_size=batch_size)
        return ModelSource(session.directory, sampled, "qtk")

    class Stopped(ModelSource):
        def answers(self, part, tasks, directory):
            for number, answer in enumerate(super().answers(part, tasks, directory)):
                if number == 5:
                    raise KeyboardInterrupt
                yield answer

    whole = run_accuracy(options, asked(4), Output(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        run_accuracy(options, Stopped(session.directory, asked(4).options, "qtk"), Output(tmp_path / "stopped"))
    kept = read_rows(tmp_path / "stopped.partial" / "generations.jsonl")
    assert 5 <= len(kept) < 12
    resumed = run_accuracy(options, asked(1), Output(tmp_path / "stopped", resume=True))
    assert resumed.scores == whole.scores
    assert resumed.decoding == whole.decoding
    texts = [
        {(row["task_id"], row["sample"]): row["generation"] for row in read_rows(tmp_path / name / "generations.jsonl")}
        for name in ("whole", "stopped")
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 12


def test_a_run_is_not_continued_with_another_seed(tmp_path, own_suite, session):
    options = AccuracyOptions(suite=(str(own_suite),), data=tmp_path)
    (tmp_path / "out.partial").mkdir()
    (tmp_path / ".out.qtk-lock").touch()
    (tmp_path / "out.partial" / "generations.jsonl").write_text("{}\n{}\n")
    source = ModelSource(session.directory, ModelOptions(seed=1), "qtk")
    for record, complaint in (
        (json.dumps({"facts": {"--seed": "another"}}), "was begun with another .*--seed"),
        (json.dumps({"identity": "of an earlier qtk"}), "does not say what it was begun with"),
    ):
        (tmp_path / "out.partial" / "run.json").write_text(record)
        for resume in (True, False):
            with pytest.raises(InputError, match=complaint) as caught:
                run_accuracy(options, source, Output(tmp_path / "out", resume=resume))
            assert "2 lines of generations.jsonl" in str(caught.value)
    assert "2 lines done" in inspect_directory(tmp_path / "out.partial").facts["done"]


def test_a_checkpoint_is_scored_from_the_command_line_and_compared(tmp_path, own_suite, model, run_qtk):
    suites = ["--suite", own_suite, "--suite", tmp_path / "own-likelihood.yaml"]
    words = ["bench", "accuracy", model, *suites, "--data", tmp_path, "--max-new-tokens", 16]
    done = run_qtk(*words, "-o", tmp_path / "out", "--json", "--save-generations", tmp_path / "kept.jsonl")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    programs, likelihood = result["scores"]
    assert (programs["kind"], set(programs["tasks"])) == ("programs", {"Own/0", "Own/1", "Own/2"})
    assert likelihood["tasks"]["Own/0"]["tokens"] == len("    return x\n")
    assert result["chat_format"] == "none"
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 3
    again = run_qtk(
        "bench", "accuracy", *suites[:2], "--data", tmp_path, "--generations", tmp_path / "kept.jsonl", "--json",
        "-o", tmp_path / "again",
    )  # fmt: skip
    assert json.loads(again.stdout)["scores"][0]["tasks"] == programs["tasks"]
    compared = run_qtk("bench", "compare", tmp_path / "out", tmp_path / "out", "--json")
    assert compared.returncode == 0, compared.stderr
    assert [row["difference"] for row in json.loads(compared.stdout)["rows"]] == [0, 0]
    neither = run_qtk("bench", "accuracy", *suites[:2], "-o", tmp_path / "x")
    assert neither.returncode == 2
    no_model = run_qtk("bench", "accuracy", *suites, "--generations", tmp_path / "kept.jsonl", "-o", tmp_path / "x")
    assert no_model.returncode == 2
    assert (
        "Probabilities are needed for own-likelihood. A file of answers does not hold probabilities" in no_model.stderr
    )
