"""A model of an endpoint as a source of answers, which are kept as they come."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from qtk.bench.accuracy.answer_source import AskedModel
from qtk.bench.accuracy.model_source import ANSWERS_NAME, kept_answers, require_samples_that_differ
from qtk.bench.accuracy.options import ModelOptions, Rules
from qtk.bench.accuracy.programs.answers import Answer, AnswerKey
from qtk.bench.accuracy.programs.endpoint_answers import EndpointAnswers
from qtk.bench.accuracy.programs.generation import answer_keys
from qtk.bench.accuracy.suites.suites import SuitePart
from qtk.bench.accuracy.task import Task
from qtk.bench.endpoint.client import EndpointClient
from qtk.bench.endpoint.options import EndpointOptions
from qtk.bench.endpoint.served_model import endpoint_of, served_name
from qtk.checkpoint.manifest import canonical_digest
from qtk.errors import InputError


class EndpointSource:
    """A model of an endpoint, as an `AnswerSource`."""

    role: Literal["model"] = "model"
    path = None
    without_logits = "An endpoint is asked for texts only: measure the checkpoint, or an engine of --backend onnxruntime or tensorrt."

    def __init__(self, address: str, endpoint: EndpointOptions, options: ModelOptions, rules: Rules) -> None:
        """InputError for what is not the address of an endpoint, and for several samples without a temperature."""
        require_samples_that_differ(options)
        self._endpoint, self._wanted = endpoint_of(address, endpoint), endpoint.model
        self.options, self.rules = options, rules

    @cached_property
    def _name(self) -> str:
        """The model's name there, asked of the endpoint when it is first needed."""
        with EndpointClient(self._endpoint) as client:
            return served_name(client, self._wanted)

    @property
    def files(self) -> list[Path]:
        return []

    @property
    def place(self) -> str:
        return f"{self._name} at {self._endpoint.address}"

    @property
    def label(self) -> str:
        return f"--samples {self.options.samples}"

    def digest(self) -> str:
        return canonical_digest([self._endpoint.address, self._name])

    def ambiguous(self, parts: Sequence[tuple[SuitePart, Sequence[Task]]]) -> list[str]:
        return []

    def keys(self, part: SuitePart, tasks: Sequence[Task]) -> list[AnswerKey]:
        return list(answer_keys(part, tasks, self.options.samples))

    def answers(self, part: SuitePart, tasks: Sequence[Task], directory: Path) -> Iterable[Answer]:
        def generate(finished: Collection[AnswerKey]) -> Iterator[Answer]:
            asked = EndpointAnswers(self._endpoint, self._name, self.options, self.rules)
            return asked.answers(part, tasks, finished)

        return kept_answers(directory / ANSWERS_NAME, part, self.keys(part, tasks), generate)

    def asked_model(self) -> AskedModel:
        raise InputError(self.without_logits)

    def close(self) -> None:
        """Connections are closed with the last answer."""
