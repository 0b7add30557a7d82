"""The tasks of a run in shards, which are done in other processes or on other machines, and gathered into the run's files."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from qtk.bench.accuracy.answer_source import AnswerSource
from qtk.bench.accuracy.kinds import measure_of
from qtk.bench.accuracy.languages.base import LanguageUnavailable
from qtk.bench.accuracy.measures.measure import Loaded, Workplace
from qtk.bench.accuracy.options import AccuracyOptions
from qtk.bench.accuracy.shard_rows import deal, gather, shard_directory
from qtk.bench.accuracy.source_place import SourcePlace
from qtk.errors import MachineError, QtkError
from qtk.progress import note
from qtk.sandbox.job import Level
from qtk.sandbox.pool import choose_level
from qtk.wording import counted


@dataclass(frozen=True)
class Shard:
    """A share of the tasks of every part. directory: where it keeps what is finished. source_digest: what tells its source
    from another one at the same place. level: the sandbox level of the run, None where none is needed."""

    name: str
    directory: Path
    parts: tuple[Loaded, ...]
    options: AccuracyOptions
    source: SourcePlace
    source_digest: str
    level: Level | None


@dataclass(frozen=True)
class EndedShard:
    """How a shard ended. unavailable: the parts that its machine cannot score, by their labels, with the reason. error: what
    ended it early. where: the machine that did it."""

    shard: Shard
    unavailable: Mapping[str, str] = field(default_factory=dict)
    error: QtkError | None = None
    where: str = ""


class ShardRunner(Protocol):
    """slots: how many shards are done at once. `start` takes one, `wait` gives one that has ended."""

    slots: int

    def start(self, shard: Shard) -> None: ...

    def wait(self) -> EndedShard: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Sharding:
    """Where shards get their answers from, and what opens the runner that does them."""

    source: SourcePlace
    runner: Callable[[], ShardRunner]


def do_shard(shard: Shard) -> dict[str, str]:
    """Does what is not finished of a shard, into its directory. The parts that this machine cannot score, with the reason.
    MachineError for a machine that does not have the directory, the same source or the sandbox of the run."""
    if not shard.directory.is_dir():
        raise MachineError(
            f"{platform.node()} does not have {shard.directory}: tasks on several machines need a directory that all of them "
            "share at the same path."
        )
    level = None if shard.level is None else choose_level(shard.level, allow_unsandboxed=True)
    unavailable = {}
    with closing(shard.source.open()) as source:
        if source.digest() != shard.source_digest:
            raise MachineError(f"{platform.node()} has something else at {shard.source.place} than this machine.")
        for data in shard.parts:
            try:
                measure_of(data.part.suite.kind)(shard.options).score(data, source, Workplace(shard.directory, level))
            except LanguageUnavailable as error:
                unavailable[data.part.label] = str(error)
    return unavailable


def do_in_shards(
    loaded: Sequence[Loaded], source: AnswerSource, workplace: Workplace, options: AccuracyOptions, sharding: Sharding
) -> dict[str, str]:
    """Does the parts' tasks in as many shards as the runner does at once, and gathers what they finished into the workplace.

    The parts that a machine cannot score, with the reason. The first error of a shard ends the run; what is finished stays.
    """
    place = sharding.source.place if source.path is None else str(source.path.absolute())
    named, digest = replace(sharding.source, place=place), source.digest()
    unavailable: dict[str, str] = {}
    runner = sharding.runner()
    try:
        shares = [share for number in range(runner.slots) if (share := _share(loaded, number, runner.slots))]
        for number, parts in enumerate(shares):
            directory = shard_directory(workplace.directory.absolute(), number)
            deal(workplace.directory, directory, parts)
            name = f"shard {number + 1} of {len(shares)}"
            runner.start(Shard(name, directory, parts, options, named, digest, workplace.level))
        for _ in shares:
            ended = runner.wait()
            if ended.error is not None:
                raise ended.error
            unavailable |= ended.unavailable
            tasks = sum(len(data.task_ids) or 1 for data in ended.shard.parts)
            note(f"{ended.shard.name}, {counted(tasks, 'task')}, is done{f' by {ended.where}' if ended.where else ''}.")
    finally:
        runner.close()
    gather(workplace.directory)
    return unavailable


def _share(loaded: Sequence[Loaded], number: int, count: int) -> tuple[Loaded, ...]:
    """What falls to shard `number`. Parts that are one piece of work begin with another shard each."""
    shares = (data.share((number - first) % count, count) for first, data in enumerate(loaded))
    return tuple(share for share in shares if share is not None)
