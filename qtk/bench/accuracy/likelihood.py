"""Log-likelihood of the reference solutions given their prompts: sees a small loss where pass@1 of a small model is noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from qtk.bench.accuracy.programs.answers import write_line
from qtk.bench.accuracy.programs.language_run import complete_rows
from qtk.bench.accuracy.results.statistics import mean_and_error
from qtk.bench.accuracy.suites.tasks import Task
from qtk.engines.sessions.session import DecoderSession
from qtk.errors import InputError, listing
from qtk.models.tokenizer import TextTokenizer
from qtk.progress import Progress

LIKELIHOODS_NAME = "likelihoods.jsonl"


class TaskLikelihood(BaseModel):
    """One reference solution: the sum of its tokens' natural log-probabilities, and how many tokens it has."""

    model_config = ConfigDict(frozen=True)
    log_likelihood: float
    tokens: int

    @property
    def per_token(self) -> float:
        return self.log_likelihood / self.tokens


class LikelihoodScore(BaseModel):
    """One language: mean over tasks of the log-likelihood per token (nats), and its standard error."""

    model_config = ConfigDict(frozen=True)
    suite: str
    language: str
    file: str
    file_sha256: str
    mean: float
    standard_error: float | None
    tasks: dict[str, TaskLikelihood]


def score_likelihood(
    suite: str, language: str, file: str, sha256: str, tasks: dict[str, TaskLikelihood]
) -> LikelihoodScore:
    """Sums up a language."""
    mean, error = mean_and_error([task.per_token for task in tasks.values()])
    return LikelihoodScore(
        suite=suite,
        language=language,
        file=file,
        file_sha256=sha256,
        mean=mean,
        standard_error=error if error == error else None,
        tasks=tasks,
    )


def prompt_and_solution(tokenizer: TextTokenizer, task: Task) -> tuple[list[int], int]:
    """Token ids of prompt + reference encoded as one text, and where the reference begins.

    A token that straddles the border counts as the reference's.
    """
    prompt = tokenizer.encode(task.prompt, special=False)
    ids = tokenizer.encode(task.prompt + task.reference, special=False)
    start = next((i for i, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), min(len(prompt), len(ids)))
    return [*tokenizer.bos_ids, *ids], len(tokenizer.bos_ids) + start


def reference_likelihoods(
    session: DecoderSession, suite: str, language: str, tasks: Sequence[Task], directory: Path
) -> dict[str, TaskLikelihood]:
    """task_id -> likelihood of its reference. Each is written into the directory at once; those that an earlier, stopped
    run wrote there are not read again. InputError names the tasks that are too long for the engine.
    """
    file = directory / LIKELIHOODS_NAME
    found = {
        row["task_id"]: TaskLikelihood(log_likelihood=row["log_likelihood"], tokens=row["tokens"])
        for row in complete_rows(file)
        if (row["suite"], row["language"]) == (suite, language)
    }
    rows = {task.task_id: prompt_and_solution(session.tokenizer, task) for task in tasks}
    limit = session.limits.max_positions
    if long := [f"{name}: {len(ids)} tokens" for name, (ids, _) in rows.items() if len(ids) > limit]:
        raise InputError(f"The engine holds {limit} tokens; these tasks are longer:\n{listing(long)}")
    names = [name for name in rows if name not in found]
    starts = [max(rows[name][1], 1) for name in names]
    with Progress(f"{suite} {language}", len(names), "tasks") as progress, open(file, "a", encoding="utf-8") as stream:
        for index, values, _ in scored_tokens(session, [rows[name][0] for name in names], starts):
            found[names[index]] = one = TaskLikelihood(log_likelihood=float(values.sum()), tokens=len(values))
            write_line(stream, {"suite": suite, "language": language, "task_id": names[index], **one.model_dump()})
            progress.advance(1)
    return {task.task_id: found[task.task_id] for task in tasks}


def token_log_likelihoods(session: DecoderSession, rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """For each row of token ids the natural log-probability of ids[1:], each given what stands before it; float64."""
    found = {index: values for index, values, _ in scored_tokens(session, rows, [1] * len(rows))}
    return [found[index] for index in range(len(rows))]


def scored_tokens(
    session: DecoderSession, texts: Sequence[Sequence[int]], starts: Sequence[int]
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(number of a text, log-probabilities, is likeliest) of its tokens from `start` (1 or more) on, as they are done.

    Natural logarithms, float64; is likeliest: bool, whether greedy decoding would have taken the token. Texts of like
    length run together, and those that differ in their last token only (the letters of a question) in one row.
    """
    rows: dict[tuple[int, ...], list[int]] = {}
    for number, text in enumerate(texts):
        if len(text) > 1:
            rows.setdefault(tuple(text[:-1]), []).append(number)
        else:
            yield number, np.empty(0), np.empty(0, bool)
    order = sorted(rows, key=len)
    for begin in range(0, len(order), session.limits.max_batch):
        batch = order[begin : begin + session.limits.max_batch]
        # The position of each logit that is wanted, and of which token: first what all texts of a row share, then
        # their last tokens.
        first = [min(starts[number] for number in rows[row]) for row in batch]
        places = [
            np.array([*range(f - 1, len(r) - 1), *[len(r) - 1] * len(rows[r])])
            for f, r in zip(first, batch, strict=True)
        ]
        tokens = [np.array([*row[f:], *(texts[n][-1] for n in rows[row])]) for f, row in zip(first, batch, strict=True)]
        values = [np.empty(len(place)) for place in places]
        likeliest = [np.empty(len(place), bool) for place in places]
        for start, logits in session.logit_chunks(batch):
            for row, place in enumerate(places):
                here = (place >= start) & (place < start + logits.shape[1])
                wanted = logits[row, place[here] - start]
                values[row][here] = log_probabilities(wanted, tokens[row][here])
                likeliest[row][here] = wanted.argmax(axis=-1) == tokens[row][here]
        for row, ids in enumerate(batch):
            shared = len(ids) - first[row]
            for number_in_row, number in enumerate(rows[ids]):
                mine = [*range(starts[number] - first[row], shared), shared + number_in_row]
                yield number, values[row][mine], likeliest[row][mine]


def log_probabilities(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """log softmax(logits)[targets]: logits [tokens, vocab], targets [tokens] -> [tokens] float64."""
    top = logits.max(axis=-1, keepdims=True, initial=-np.inf)
    # The exponentials in the logits' own precision, at most 1 each; their sum, which may be of many, in double.
    total = np.log(np.exp(logits - top).sum(axis=-1, dtype=np.float64)) + top[:, 0]
    return logits[np.arange(len(targets)), targets] - total


def paired_likelihoods(before: LikelihoodScore, after: LikelihoodScore) -> Iterator[tuple[float, float]]:
    """Per-token log-likelihoods of the same tasks."""
    for name, task in before.tasks.items():
        yield task.per_token, after.tasks[name].per_token
