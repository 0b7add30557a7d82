"""Where answers come from: what the measures ask of a file of answers or of a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from qtk.bench.accuracy.options import ModelOptions
from qtk.bench.accuracy.programs.answers import Answer, AnswerKey
from qtk.bench.accuracy.suites.suites import SuitePart
from qtk.bench.accuracy.task import Task

if TYPE_CHECKING:
    from qtk.engines.sessions.session import DecoderSession


@dataclass(frozen=True)
class AskedModel:
    """An open model whose probabilities can be read, and how it is asked."""

    session: DecoderSession
    options: ModelOptions


class AnswerSource(Protocol):
    """A file of answers, or a model, here or at an endpoint.

    role: what it is called in the manifest. path: the file or the model's directory, None for an endpoint; files: all files
    of it. place: where it is, as the result says. label: what it is called in a sentence. options: how a model is asked,
    None for a file. without_logits: why no probabilities can be read from it, None where they can. Making one reads little;
    a model is opened, and an endpoint asked, when it is first needed.
    """

    @property
    def role(self) -> Literal["answers", "model"]: ...

    @property
    def path(self) -> Path | None: ...

    @property
    def place(self) -> str: ...

    @property
    def files(self) -> list[Path]: ...

    @property
    def label(self) -> str: ...

    @property
    def options(self) -> ModelOptions | None: ...

    @property
    def without_logits(self) -> str | None: ...

    def digest(self) -> str:
        """What tells the source from another one with the same path, without reading a model's weights."""
        ...

    def ambiguous(self, parts: Sequence[tuple[SuitePart, Sequence[Task]]]) -> list[str]:
        """The tasks whose answers could belong to several of the parts."""
        ...

    def keys(self, part: SuitePart, tasks: Sequence[Task]) -> list[AnswerKey]:
        """The answers that there will be, in the order of the tasks. InputError when tasks have none."""
        ...

    def answers(self, part: SuitePart, tasks: Sequence[Task], directory: Path) -> Iterable[Answer]:
        """Those answers, as they come. A model's are kept in the directory, and what is kept there is not generated again."""
        ...

    def asked_model(self) -> AskedModel:
        """The model, open. InputError where no probabilities can be read from it."""
        ...

    def close(self) -> None:
        """Closes the model if it was opened."""
        ...
