"""Answers by where they are: what the command line knows of them, and what is sent to another machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qtk.bench.accuracy.answer_source import AnswerSource
from qtk.bench.accuracy.options import ModelOptions, Rules
from qtk.bench.endpoint.options import EndpointOptions, is_address


@dataclass(frozen=True)
class SourcePlace:
    """place: an engine, a checkpoint or an id of the hub, the address of an endpoint, or a file of answers (stored). An
    endpoint's key is not in it: each machine takes it from its environment."""

    place: str
    rules: Rules
    stored: bool = False
    model: ModelOptions = ModelOptions()
    endpoint: EndpointOptions = EndpointOptions()

    def open(self) -> AnswerSource:
        """The source. InputError for what is not there or does not hold answers, and as of each kind of source."""
        if self.stored:
            from qtk.bench.accuracy.programs.answers import AnswerFile

            return AnswerFile(Path(self.place))
        if is_address(self.place):
            from qtk.bench.accuracy.endpoint_source import EndpointSource

            return EndpointSource(self.place, self.endpoint, self.model, self.rules)
        from qtk.bench.accuracy.model_source import ModelSource

        return ModelSource(Path(self.place), self.model, self.rules)
