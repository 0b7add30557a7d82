"""Suites: one YAML each in bench/suites says which files, languages and rules; the data lies where the user keeps it."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qtk.bench.accuracy.tasks import Task, read_tasks
from qtk.errors import InputError, listing
from qtk.shipped import load_yaml, shipped_directory, shipped_names

_ROOM = "bench/suites"


class SuiteLanguage(BaseModel):
    """One language of a suite: its file below the data folder, and how many tasks that should hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: str
    tasks: int


class Suite(BaseModel):
    """A suite as its YAML describes it.

    kind: programs are generated and run; likelihood reads how probable a model finds the reference solutions.
    package: a Python package that carries the file of the single language itself. python_header: lines put before
    every Python program. seconds: the clock of one run (compiling has its own). prompt: how a task becomes a prompt.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    kind: Literal["programs", "likelihood"] = "programs"
    summary: str
    source: str
    licence: str
    layout: Literal["humaneval-x", "humaneval", "mbpp"]
    languages: dict[str, SuiteLanguage]
    package: str | None = None
    challenge_tests: bool = False
    python_header: str = ""
    seconds: float = Field(10.0, gt=0)


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
    """`NAME` or `NAME:language,language` -> the suite and the languages to score. InputError for unknown ones."""
    name, _, chosen = text.partition(":")
    suite = load_suite(name)
    languages = tuple(word for word in chosen.split(",") if word) or tuple(suite.languages)
    languages = tuple(_SHORT.get(word, word) for word in languages)
    unknown = [word for word in languages if word not in suite.languages]
    if unknown:
        raise InputError(f"Suite {suite.name} has no {', '.join(unknown)}. Languages: {', '.join(suite.languages)}.")
    return suite, languages


_SHORT = {"js": "javascript", "py": "python", "c++": "cpp", "golang": "go"}


def data_file(suite: Suite, language: str, data: Path | None) -> Path:
    """Where the tasks lie: below `data`, else below the folder that QTK_DATA names, else in the suite's package."""
    wanted = suite.languages[language].file
    looked = []
    for folder in (data, Path(os.environ["QTK_DATA"]) if os.environ.get("QTK_DATA") else None):
        if folder is None:
            continue
        for candidate in (folder / wanted, folder / Path(wanted).name, folder):
            if candidate.is_file():
                return candidate
        looked.append(str(folder / wanted))
    if suite.package is not None:
        found = importlib.util.find_spec(suite.package)
        if found is not None and found.origin is not None:
            candidate = Path(found.origin).parent / wanted
            if candidate.is_file():
                return candidate
            candidate = Path(found.origin).parent.parent / wanted
            if candidate.is_file():
                return candidate
        looked.append(f"the Python package {suite.package} (pip install {suite.package.replace('_', '-')})")
    where = f" It is not in:\n{listing(looked)}" if looked else ""
    raise InputError(
        f"Suite {suite.name} needs {Path(wanted).name} ({suite.source}).{where}\n"
        "Name its folder with --data DIR or the environment variable QTK_DATA."
    )


def suite_tasks(suite: Suite, language: str, data: Path | None) -> tuple[list[Task], Path]:
    """The tasks of a language, in the order of the file, and the file."""
    path = data_file(suite, language, data)
    tasks = read_tasks(path, suite.layout, language, suite.challenge_tests)
    if not tasks:
        raise InputError(f"{path} holds no task.")
    return tasks, path
