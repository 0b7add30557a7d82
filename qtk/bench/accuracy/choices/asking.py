"""Asks a model the questions of a set in both ways, in batches; every answer is written at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qtk.bench.accuracy.answer_source import AskedModel
from qtk.bench.accuracy.choices.questions import Question, answer_part, certain, picked, question
from qtk.bench.accuracy.choices.rows import QuestionRow
from qtk.bench.accuracy.jsonl import complete_rows, write_row
from qtk.bench.accuracy.log_probabilities import scored_tokens
from qtk.bench.accuracy.programs.generation import TextRequest, generated_texts
from qtk.bench.accuracy.programs.prompts import encode
from qtk.bench.accuracy.results.choices import MODES, ChoiceAnswer, Mode
from qtk.bench.accuracy.suites.suites import SuitePart
from qtk.engines.sessions.session import DecoderSession
from qtk.errors import InputError, listing
from qtk.progress import Progress

CHOICES_NAME = "choices.jsonl"


@dataclass(frozen=True)
class EncodedQuestion:
    """A question as tokens: the prompt, and a row an option. fewer_examples: not all the examples fit into the engine."""

    question: Question
    prompt: list[int]
    texts: list[list[int]]
    fewer_examples: bool


@dataclass(frozen=True)
class Given:
    """What a model gave as its answer in one of the two ways; details: what the line in the file says besides."""

    mode: Mode
    question: Question
    answer: int | None
    details: Mapping[str, object]


class Asking:
    """Asks the questions of one set; those that an earlier, stopped run has answered in the directory are not asked again."""

    def __init__(self, model: AskedModel, part: SuitePart, directory: Path) -> None:
        self.model, self.part = model, part
        self.choice_set = part.suite.sets[part.name]
        self.file = directory / CHOICES_NAME

    def answers(self, rows: Sequence[QuestionRow]) -> tuple[dict[str, ChoiceAnswer], int]:
        """task_id -> answer, in the order of the rows; and how many were asked with fewer examples than the set wants.

        InputError names every question that the engine cannot hold, before anything is asked.
        """
        questions = self._encoded(rows)
        finished = self._finished()
        place = {"suite": self.part.suite.name, "set": self.part.name}
        with open(self.file, "a", encoding="utf-8") as stream:
            for mode, ask in zip(MODES, (self._generated, self._read), strict=True):
                missing = [encoded for encoded in questions if encoded.question.id not in finished[mode]]
                for given in ask(missing):
                    task_id, gold = given.question.id, given.question.gold
                    line = {**place, "task_id": task_id, "mode": mode, "answer": given.answer, "gold": gold}
                    write_row(stream, {**line, **given.details})
                    finished[mode][task_id] = given.answer
        answers = {
            encoded.question.id: ChoiceAnswer.model_validate(
                {
                    "subject": encoded.question.subject,
                    "gold": encoded.question.gold,
                    **{mode: finished[mode][encoded.question.id] for mode in MODES},
                }
            )
            for encoded in questions
        }
        return answers, sum(encoded.fewer_examples for encoded in questions)

    def _finished(self) -> dict[Mode, dict[str, int | None]]:
        """mode -> task_id -> answer, of an earlier run."""
        finished: dict[Mode, dict[str, int | None]] = {mode: {} for mode in MODES}
        for row in complete_rows(self.file):
            if (row["suite"], row["set"]) == (self.part.suite.name, self.part.name):
                finished[row["mode"]][row["task_id"]] = row["answer"]
        return finished

    def _encoded(self, rows: Sequence[QuestionRow]) -> list[EncodedQuestion]:
        """Each question with as many of its examples as the engine can hold."""
        limit = self.model.session.limits.max_positions
        questions, long = [], []
        for row in rows:
            for shots in range(len(row.shots), -1, -1):
                encoded = self._encode(question(self.choice_set, row, shots), shots < len(row.shots))
                need = max(len(encoded.prompt) + self.choice_set.answer_tokens, *map(len, encoded.texts))
                if need <= limit:
                    questions.append(encoded)
                    break
            else:
                long.append(f"{row.id}: {need} tokens")
        if long:
            raise InputError(
                f"The engine holds {limit} tokens; these questions of {self.part.name} are longer (build-engine "
                f"--max-input-len):\n{listing(long)}"
            )
        return questions

    def _encode(self, filled: Question, fewer_examples: bool) -> EncodedQuestion:
        tokenizer = self.model.session.tokenizer
        prompt = encode(tokenizer, filled.prompt, self.model.options.chat_format)
        texts = [[*tokenizer.bos_ids, *tokenizer.encode(text)] for text in filled.texts]
        return EncodedQuestion(filled, prompt, texts, fewer_examples)

    def _generated(self, questions: Sequence[EncodedQuestion]) -> Iterator[Given]:
        """The letters that the model writes."""
        model, pick = self.model, self.choice_set.pick
        chat = model.options.chat_format != "none"
        requests = [
            TextRequest(encoded.question.id, encoded.prompt, self._end(encoded.question.options, chat))
            for encoded in questions
        ]
        label = f"{self.part.name}: generating"
        texts = generated_texts(model.session, requests, self.choice_set.answer_tokens, model.options, label)
        for number, text in texts:
            answered = questions[number].question
            answer = picked(pick, answer_part(text, chat=chat), answered.options)
            yield Given("generation", answered, answer, {"text": text})

    def _end(self, options: int, chat: bool) -> Callable[[str, str], bool]:
        return lambda text, piece: certain(self.choice_set.pick, text, options, chat=chat)

    def _read(self, questions: Sequence[EncodedQuestion]) -> Iterator[Given]:
        """The options whose texts the model finds likeliest."""
        with Progress(f"{self.part.name}: reading", len(questions), "questions") as progress:
            for number, losses in option_losses(self.model.session, [encoded.texts for encoded in questions]):
                yield Given("perplexity", questions[number].question, int(np.argmin(losses)), {"losses": losses})
                progress.advance(1)


def option_losses(
    session: DecoderSession, questions: Sequence[Sequence[list[int]]]
) -> Iterator[tuple[int, list[float]]]:
    """For each question its number and a loss an option: the text's summed negative log-likelihood (nats) over its
    number of tokens, first one included, as OpenCompass divides. A question comes when its last option has been read.
    """
    places = [(number, option) for number, texts in enumerate(questions) for option in range(len(texts))]
    texts = [text for texts in questions for text in texts]
    losses = [[float("nan")] * len(texts) for texts in questions]
    missing = [len(texts) for texts in questions]
    for index, values, _ in scored_tokens(session, texts, [1] * len(texts)):
        number, option = places[index]
        losses[number][option] = -float(values.sum()) / len(texts[index])
        missing[number] -= 1
        if missing[number] == 0:
            yield number, losses[number]
