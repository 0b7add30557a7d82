"""What a command that can be resumed writes of itself before it works: which command, begun when, on what terms."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from qtk.checkpoint.atomic import write_atomic
from qtk.checkpoint.manifest import canonical_digest
from qtk.checkpoint.publishing import typed_command


class BegunWork(BaseModel):
    """A record of unfinished work. facts: a digest of each thing that decides the result, by the name a refusal calls it.

    begun: ISO 8601 UTC. command: the words as they were typed. total, unit: how much there is to do ("30", "block").
    compute_dtype, threads: of a quantization (0: not recorded).
    """

    model_config = ConfigDict(frozen=True)

    facts: dict[str, str]
    begun: str = ""
    command: tuple[str, ...] = ()
    total: int = 0
    unit: str = ""
    compute_dtype: str = ""
    threads: int = 0

    @staticmethod
    def now(facts: Mapping[str, Any], *, total: int, unit: str, compute_dtype: str = "", threads: int = 0) -> BegunWork:
        """The record of work that begins now. facts: JSON-able values by name."""
        return BegunWork(
            facts={name: canonical_digest(value) for name, value in facts.items()},
            begun=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            command=tuple(typed_command()),
            total=total,
            unit=unit,
            compute_dtype=compute_dtype,
            threads=threads,
        )

    @staticmethod
    def read(path: Path) -> BegunWork | None:
        """The record in a file; None where it is absent or damaged."""
        try:
            return BegunWork.model_validate(json.loads(path.read_bytes()))
        except (OSError, ValueError, ValidationError):
            return None

    def write(self, path: Path) -> None:
        """Writes the record so that it survives a lost machine."""
        write_atomic(path, self.model_dump_json())

    def differing(self, facts: Mapping[str, Any]) -> list[str]:
        """The names of the facts that were others then."""
        now = {name: canonical_digest(value) for name, value in facts.items()}
        return sorted(name for name in {*self.facts, *now} if self.facts.get(name) != now.get(name))


class UnfinishedWork(BaseModel):
    """Work that --resume can continue. done: how much of `begun.total`; details: what else lies there, in words."""

    model_config = ConfigDict(frozen=True)

    kind: str
    begun: BegunWork
    done: int
    details: str = ""

    @property
    def how_far(self) -> str:
        """For example: 9 of 30 blocks done."""
        total = f" of {self.begun.total}" if self.begun.total else ""
        many = "" if (self.begun.total or self.done) == 1 else "s"
        return f"{self.done}{total} {self.begun.unit or 'part'}{many} done"

    def sentence(self) -> str:
        """How far it is and when it was begun, as a part of a sentence."""
        begun = f", begun {self.begun.begun}" if self.begun.begun else ""
        return f"{self.how_far}{begun}{f' ({self.details})' if self.details else ''}"
