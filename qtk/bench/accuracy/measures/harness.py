"""Tasks of lm-evaluation-harness, run on the engine itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from qtk.bench.accuracy.answer_source import AnswerSource
from qtk.bench.accuracy.measures.measure import Loaded, Need, Workplace
from qtk.bench.accuracy.options import AccuracyOptions
from qtk.bench.accuracy.results.harness import HarnessScore
from qtk.bench.accuracy.suites.suites import SuitePart
from qtk.checkpoint.manifest import canonical_digest, file_digest
from qtk.errors import InputError


class HarnessMeasure:
    """The metrics of one task, or of every task of a group."""

    needs: ClassVar[frozenset[Need]] = frozenset({"text", "logits"})

    def __init__(self, options: AccuracyOptions) -> None:
        self.options = options

    def load(self, part: SuitePart) -> Loaded:
        path = Path(part.name)
        if path.suffix not in (".yaml", ".yml"):
            return Loaded(part, [], part.name, canonical_digest(part.name))
        if not path.is_file():
            raise InputError(f"{path}: no such file (expected a task of lm-evaluation-harness).")
        return Loaded(part, [path], path.name, file_digest(path).sha256)

    def refusals(self, loaded: Sequence[Loaded], source: AnswerSource) -> list[str]:
        if source.options is None or source.options.chat_format != "codefuse":
            return []
        return [
            "lm-evaluation-harness does not know --chat-format codefuse: it renders the chats of "
            f"lm-eval:{loaded[0].part.name} itself. Give --chat-format none or model, or run the task by itself."
        ]

    def score(self, loaded: Loaded, source: AnswerSource, workplace: Workplace) -> Sequence[HarnessScore]:
        from qtk.bench.accuracy.harness.evaluation import harness_scores

        model, name = source.asked_model(), loaded.part.name
        return harness_scores(model, name, workplace.directory, limit=self.options.limit, hub=self.options.hub)
