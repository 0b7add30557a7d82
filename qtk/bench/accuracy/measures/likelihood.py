"""Log-likelihood of the reference solutions given their prompts. It shows a small loss where pass@1 of a small model is noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from qtk.bench.accuracy.answer_source import AnswerSource
from qtk.bench.accuracy.jsonl import complete_rows, write_row
from qtk.bench.accuracy.log_probabilities import prompt_and_solution, scored_tokens
from qtk.bench.accuracy.measures.measure import Need, Workplace
from qtk.bench.accuracy.measures.tasks import LoadedTasks, load_tasks
from qtk.bench.accuracy.options import AccuracyOptions
from qtk.bench.accuracy.results.likelihood import LikelihoodScore, TaskLikelihood, score_likelihood
from qtk.bench.accuracy.suites.suites import SuitePart
from qtk.bench.accuracy.task import Task
from qtk.engines.sessions.session import DecoderSession
from qtk.errors import InputError, listing
from qtk.progress import Progress

LIKELIHOODS_NAME = "likelihoods.jsonl"


class LikelihoodMeasure:
    """Mean log-likelihood per token of one language's reference solutions."""

    needs: ClassVar[frozenset[Need]] = frozenset({"logits"})

    def __init__(self, options: AccuracyOptions) -> None:
        self.options = options

    def load(self, part: SuitePart) -> LoadedTasks:
        return load_tasks(part, self.options)

    def refusals(self, loaded: Sequence[LoadedTasks], source: AnswerSource) -> list[str]:
        return []

    def score(self, loaded: LoadedTasks, source: AnswerSource, workplace: Workplace) -> Sequence[LikelihoodScore]:
        session = source.asked_model().session
        likelihoods = reference_likelihoods(session, loaded.part, loaded.tasks, workplace.directory)
        return [score_likelihood(loaded.source, likelihoods)]


def reference_likelihoods(
    session: DecoderSession, part: SuitePart, tasks: Sequence[Task], directory: Path
) -> dict[str, TaskLikelihood]:
    """task_id -> likelihood of its reference. Each is written into the directory at once; those that an earlier, stopped
    run has written there are not read again. InputError names the tasks that are too long for the engine.
    """
    file, place = directory / LIKELIHOODS_NAME, {"suite": part.suite.name, "language": part.name}
    likelihoods = {
        row["task_id"]: TaskLikelihood(log_likelihood=row["log_likelihood"], tokens=row["tokens"])
        for row in complete_rows(file)
        if place.items() <= row.items()
    }
    rows = {task.task_id: prompt_and_solution(session.tokenizer, task) for task in tasks}
    limit = session.limits.max_positions
    if long := [f"{name}: {len(ids)} tokens" for name, (ids, _) in rows.items() if len(ids) > limit]:
        raise InputError(f"The engine holds {limit} tokens; these tasks are longer:\n{listing(long)}")
    names = [name for name in rows if name not in likelihoods]
    starts = [max(rows[name][1], 1) for name in names]
    with Progress(part.label, len(names), "tasks") as progress, open(file, "a", encoding="utf-8") as stream:
        for index, values, _ in scored_tokens(session, [rows[name][0] for name in names], starts):
            likelihood = TaskLikelihood(log_likelihood=float(values.sum()), tokens=len(values))
            likelihoods[names[index]] = likelihood
            write_row(stream, {**place, "task_id": names[index], **likelihood.model_dump()})
            progress.advance(1)
    return {task.task_id: likelihoods[task.task_id] for task in tasks}
