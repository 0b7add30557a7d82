"""Log-likelihood of the reference solutions given their prompts: sees a small loss where pass@1 of a small model is noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from qtk.bench.accuracy.statistics import mean_and_error
from qtk.bench.accuracy.tasks import Task
from qtk.engines.session import DecoderSession
from qtk.errors import InputError, listing
from qtk.models.tokenizer import TextTokenizer
from qtk.progress import Progress


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


def reference_likelihoods(session: DecoderSession, tasks: Sequence[Task], label: str) -> dict[str, TaskLikelihood]:
    """task_id -> likelihood of its reference. InputError names the tasks that are too long for the engine."""
    rows = {task.task_id: prompt_and_solution(session.tokenizer, task) for task in tasks}
    limit = session.limits.max_positions
    if long := [f"{name}: {len(ids)} tokens" for name, (ids, _) in rows.items() if len(ids) > limit]:
        raise InputError(f"The engine holds {limit} tokens; these tasks are longer:\n{listing(long)}")
    order = sorted(rows, key=lambda name: len(rows[name][0]))
    size = session.limits.max_batch
    found: dict[str, TaskLikelihood] = {}
    with Progress(label, len(order), "tasks") as progress:
        for begin in range(0, len(order), size):
            names = order[begin : begin + size]
            batch = [rows[name] for name in names]
            for name, (_, start), row in zip(
                names, batch, token_log_likelihoods(session, [r for r, _ in batch]), strict=True
            ):
                values = row[max(start, 1) - 1 :]
                found[name] = TaskLikelihood(log_likelihood=float(values.sum()), tokens=len(values))
            progress.advance(len(names))
    return {task.task_id: found[task.task_id] for task in tasks}


def token_log_likelihoods(session: DecoderSession, rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """For each row of token ids the natural log-probability of ids[1:], each given what stands before it; float64."""
    found: list[list[np.ndarray]] = [[] for _ in rows]
    for first, logits in session.logit_chunks(rows):
        for row, ids in enumerate(rows):
            targets = np.array(ids[first + 1 : first + 1 + logits.shape[1]], np.int64)
            found[row].append(log_probabilities(logits[row], targets))
    return [np.concatenate(pieces) for pieces in found]


def log_probabilities(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """log softmax(logits)[targets], [targets] float64; logits [tokens, vocab] beyond the targets are padding."""
    logits = logits[: len(targets)]
    top = logits.max(axis=-1, keepdims=True, initial=-np.inf)
    # The exponentials in the logits' own precision, at most 1 each; their sum, which may be of many, in double.
    total = np.log(np.exp(logits - top).sum(axis=-1, dtype=np.float64)) + top[:, 0]
    return logits[np.arange(len(targets)), targets] - total


def paired_likelihoods(before: LikelihoodScore, after: LikelihoodScore) -> Iterator[tuple[float, float]]:
    """Per-token log-likelihoods of the same tasks."""
    for name, task in before.tasks.items():
        yield task.per_token, after.tasks[name].per_token
