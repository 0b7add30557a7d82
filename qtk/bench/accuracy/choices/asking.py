"""Asks a model the questions of a set in both ways, in batches; what is answered is written at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qtk.bench.accuracy.choices.questions import Question, answer_part, certain, picked, question
from qtk.bench.accuracy.choices.rows import Row
from qtk.bench.accuracy.likelihood import scored_tokens
from qtk.bench.accuracy.options import ModelOptions
from qtk.bench.accuracy.programs.answers import write_line
from qtk.bench.accuracy.programs.generation import generated_texts
from qtk.bench.accuracy.programs.language_run import complete_rows
from qtk.bench.accuracy.programs.prompts import encode
from qtk.bench.accuracy.results.choice_scores import ChoiceAnswer
from qtk.bench.accuracy.suites.choice_sets import ChoiceSet
from qtk.engines.sessions.session import DecoderSession
from qtk.errors import InputError, listing
from qtk.progress import Progress

CHOICES_NAME = "choices.jsonl"


@dataclass(frozen=True)
class Encoded:
    """A question as tokens: the prompt, and a row an option."""

    question: Question
    prompt: list[int]
    texts: list[list[int]]
    fewer_examples: bool


class Asking:
    """The questions of one set and what an earlier, stopped run has answered of them."""

    def __init__(
        self, session: DecoderSession, options: ModelOptions, suite: str, name: str, about: ChoiceSet, directory: Path
    ) -> None:
        self.session, self.options = session, options
        self.suite, self.name, self.about = suite, name, about
        self.file = directory / CHOICES_NAME
        self.chat = options.prompt != "plain"

    def answers(self, rows: Sequence[Row]) -> tuple[dict[str, ChoiceAnswer], int]:
        """task_id -> answer, in the order of the rows; and how many were asked with fewer examples than wanted.

        InputError names every question that the engine cannot hold, before anything is asked.
        """
        encoded = self._encoded(rows)
        finished: dict[str, dict[str, int | None]] = {"generation": {}, "perplexity": {}}
        for row in complete_rows(self.file):
            if (row["suite"], row["set"]) == (self.suite, self.name):
                finished[row["mode"]][row["task_id"]] = row["answer"]
        with open(self.file, "a", encoding="utf-8") as stream:

            def take(mode: str, one: Question, answer: int | None, more: dict[str, object]) -> None:
                about: dict[str, object] = {"suite": self.suite, "set": self.name, "task_id": one.id, "mode": mode}
                write_line(stream, {**about, "answer": answer, "gold": one.gold, **more})
                finished[mode][one.id] = answer

            self._generate([one for one in encoded if one.question.id not in finished["generation"]], take)
            self._read([one for one in encoded if one.question.id not in finished["perplexity"]], take)
        answers = {}
        for one in encoded:
            likeliest = finished["perplexity"][one.question.id]
            assert likeliest is not None
            answers[one.question.id] = ChoiceAnswer(
                subject=one.question.subject,
                gold=one.question.gold,
                generation=finished["generation"][one.question.id],
                perplexity=likeliest,
            )
        return answers, sum(one.fewer_examples for one in encoded)

    def _encoded(self, rows: Sequence[Row]) -> list[Encoded]:
        room, found, long = self.session.limits.max_positions, [], []
        for row in rows:
            for shots in range(len(row.shots), -1, -1):
                one = self._encode(question(self.about, row, shots), shots < len(row.shots))
                need = max(len(one.prompt) + self.about.answer_tokens, *map(len, one.texts))
                if need <= room:
                    found.append(one)
                    break
            else:
                long.append(f"{row.id}: {need} tokens")
        if long:
            raise InputError(
                f"The engine holds {room} tokens; these questions of {self.name} are longer (build-engine "
                f"--max-input-len):\n{listing(long)}"
            )
        return found

    def _encode(self, one: Question, fewer: bool) -> Encoded:
        tokenizer = self.session.tokenizer
        prompt = encode(tokenizer, one.prompt, self.options.prompt)
        return Encoded(one, prompt, [[*tokenizer.bos_ids, *tokenizer.encode(text)] for text in one.texts], fewer)

    def _generate(self, wanted: list[Encoded], take: Callable[..., None]) -> None:
        pick = self.about.pick

        def enough(index: int, text: str, _: str) -> bool:
            return certain(pick, text, wanted[index].question.options, chat=self.chat)

        made = generated_texts(
            self.session, [one.prompt for one in wanted], self.about.answer_tokens, self.options, enough,
            [one.question.id for one in wanted], f"{self.name}: generating",
        )  # fmt: skip
        for index, text in made:
            one = wanted[index].question
            part = answer_part(text, chat=self.chat)
            take("generation", one, picked(pick, part, one.options), {"text": text})

    def _read(self, wanted: list[Encoded], take: Callable[..., None]) -> None:
        with Progress(f"{self.name}: reading", len(wanted), "questions") as progress:
            for index, losses in option_losses(self.session, [one.texts for one in wanted]):
                take("perplexity", wanted[index].question, int(np.argmin(losses)), {"losses": losses})
                progress.advance(1)


def option_losses(
    session: DecoderSession, questions: Sequence[Sequence[list[int]]]
) -> Iterator[tuple[int, list[float]]]:
    """For each question its number and a loss an option: the text's summed negative log-likelihood (nats) over its
    number of tokens, first one included, as OpenCompass divides. Questions come as their last option is read.
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
