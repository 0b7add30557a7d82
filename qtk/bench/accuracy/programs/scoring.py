"""Runs answers in the sandbox: the references first, then every sample, in parallel. Each sample gets a verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from qtk.bench.accuracy.languages.base import LanguageUnavailable, Verdict
from qtk.bench.accuracy.languages.registry import language_named
from qtk.bench.accuracy.options import Rules, harness_of
from qtk.bench.accuracy.programs.answers import Answer
from qtk.bench.accuracy.programs.assemble import reference_source
from qtk.bench.accuracy.programs.compatibility import bigcode_source, codefuse_source
from qtk.bench.accuracy.programs.extraction import Extracted, extract
from qtk.bench.accuracy.programs.suspicion import suspicions
from qtk.bench.accuracy.suites.suites import Suite, data_of_suites
from qtk.bench.accuracy.task import Task
from qtk.errors import MachineError, listing
from qtk.progress import Progress, warn
from qtk.sandbox.job import Job, Level, ProgramOutcome
from qtk.sandbox.pool import Workers, limits_note

_FEW_REFERENCES, _REFERENCE_TRIES = 3, 20  # if so few fail, they are run so often before the machine is blamed
_KEPT_TEXT = 2000  # characters of what a program printed, kept in the record of a task that did not pass


@dataclass(frozen=True)
class Scored:
    """The verdict on a sample, how its program was made, the end of what the program printed if it did not pass, and what is
    suspicious about it if it did."""

    answer: Answer
    verdict: Verdict
    how: str
    seconds: float
    exit_code: int
    stdout: str
    stderr: str
    suspicions: list[str]

    def record(self) -> dict[str, object]:
        """The line of tasks.jsonl."""
        line: dict[str, object] = {
            "suite": self.answer.suite,
            "language": self.answer.language,
            "task_id": self.answer.task_id,
            "sample": self.answer.sample,
            "verdict": self.verdict,
            "extracted_as": self.how,
            "seconds": self.seconds,
        }
        if self.verdict != "passed":
            line |= {"exit_code": self.exit_code, "stdout": self.stdout, "stderr": self.stderr}
        if self.suspicions:
            line["suspicious"] = self.suspicions
        return line


@dataclass(frozen=True)
class Retried:
    """References after some tries: what failed in the last, what failed in the first but not in all, and the tries."""

    failed: dict[str, ProgramOutcome]
    by_chance: tuple[str, ...]
    tries: int


def retried(run: Callable[[Sequence[Task]], dict[str, ProgramOutcome]], tasks: Sequence[Task]) -> Retried:
    """Runs references; a few that fail are tried again, because what they do may depend on chance.

    run: tasks -> the outcomes of those that failed, by task_id.
    """
    first = failed = run(tasks)
    tries = 1
    while failed and len(first) <= _FEW_REFERENCES and tries < _REFERENCE_TRIES:
        tries += 1
        failed = run([task for task in tasks if task.task_id in failed])
    return Retried(failed, tuple(name for name in first if name not in failed), tries)


class Scorer:
    """Scores one language of a suite at one sandbox level.

    with Scorer(suite, "java", level="namespaces", rules="qtk", workers=2) as scorer:
        scorer.check_references(tasks)
        for scored in scorer.score(tasks, answers): ...
    """

    def __init__(
        self,
        suite: Suite,
        language: str,
        *,
        level: Level,
        rules: Rules,
        workers: int | None,
        data: Sequence[Path] = (),
    ) -> None:
        """data: files and folders with tasks, which no program may read. LanguageUnavailable when qtk does not know the
        language, or its commands or libraries are absent."""
        self.suite, self.language, self.rules = suite, language, rules
        self.toolchain = language_named(language).ready_toolchain(suite.seconds, suite.languages[language].settings)
        preload = self.toolchain.preload(suite.header(language))
        hidden = tuple(str(path) for path in (*data_of_suites(), *data))
        self.workers = Workers(level, count=workers, readable=self.toolchain.readable, preload=preload, hidden=hidden)

    def limits_note(self, task: Task) -> str:
        """The limits of this language's programs, in words."""
        job = self._job("", task)
        return limits_note(job.limits, self.workers.level, self.toolchain.seconds)

    def __enter__(self) -> Scorer:
        self.workers.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        self.workers.__exit__(*details)

    def check_references(self, tasks: Sequence[Task]) -> None:
        """Runs the known solutions. LanguageUnavailable, with the missing libraries if they show, unless all pass.

        A language whose references fail here would charge the machine's faults to the model. A few that fail are tried
        again: the solution of HumanEval-X's Go/95 depends on the order in which Go walks a map, which is random, and
        passes four times in nine. Answers of models get no second try.
        """
        label = f"{self.suite.name} {self.language}: reference solutions"
        result = retried(lambda some: self._failing_references(some, label), tasks)
        if not result.failed:
            if result.by_chance:
                names = ", ".join(result.by_chance)
                warn(f"{label}: {names} passed only after {result.tries} tries: what it does depends on chance.")
            return
        missing = self.toolchain.missing(result.failed.values())
        why = f"Missing: {', '.join(missing)}." if missing else f"The first says: {_complaint(result.failed)}"
        raise LanguageUnavailable(
            f"{len(result.failed)} of {len(tasks)} reference solutions of {self.suite.name} {self.language} do not pass on "
            f"this machine, so it cannot be scored. {why}\n{listing(result.failed)}"
        )

    def _failing_references(self, tasks: Sequence[Task], label: str) -> dict[str, ProgramOutcome]:
        jobs = ((task.task_id, self._job(reference_source(self.suite, task), task)) for task in tasks)
        # References are known programs: the strictest published rule would only punish their output.
        outcomes = self._run(jobs, label, len(tasks))
        return {name: outcome for name, outcome in outcomes if self.toolchain.verdict(outcome, "qtk") != "passed"}

    def score(self, tasks: Sequence[Task], answers: Sequence[Answer]) -> Iterator[Scored]:
        """A verdict for every answer, in the order in which the programs end."""
        by_id = {task.task_id: task for task in tasks}
        how: dict[Answer, str] = {}
        reasons: dict[Answer, list[str]] = {}

        def jobs() -> Iterator[tuple[Answer, Job]]:
            for answer in answers:
                task = by_id[answer.task_id]
                extracted = self.extracted(task, answer.generation)
                how[answer] = extracted.how
                reasons[answer] = suspicions(self.toolchain, extracted.source)
                yield answer, self._job(extracted.source, task)

        label = f"{self.suite.name} {self.language}: running answers"
        passed = 0

        def detail() -> str:
            return f"{passed} passed"

        for answer, outcome in self._run(jobs(), label, len(answers), detail):
            verdict = self.toolchain.verdict(outcome, self.rules)
            passed += verdict == "passed"
            texts = (outcome.stdout[-_KEPT_TEXT:], outcome.stderr[-_KEPT_TEXT:])
            doubts = reasons.pop(answer) if verdict == "passed" else []
            yield Scored(answer, verdict, how.pop(answer), outcome.seconds, outcome.exit_code, *texts, doubts)

    def extracted(self, task: Task, generation: str) -> Extracted:
        """The source before the tests, by the rules in force."""
        if harness_of(self.rules) == "codefuse":
            return Extracted(codefuse_source(self.suite, task, generation, self.rules), "continuation")
        if self.rules == "bigcode":
            return Extracted(bigcode_source(self.suite, task, generation), "continuation")
        return extract(self.suite, task, generation)

    def _job(self, source: str, task: Task) -> Job:
        return self.toolchain.job(source, task, self.workers.environment)

    def _run(
        self, jobs: Iterable[tuple[Any, Job]], label: str, total: int, detail: Callable[[], str] = lambda: ""
    ) -> Iterator[tuple[Any, ProgramOutcome]]:
        with Progress(label, total, "programs") as progress:
            for key, outcome in self._outcomes(jobs, total):
                if outcome.ending == "sandbox":
                    raise MachineError(f"The sandbox failed, which is not the model's fault: {outcome.stderr.strip()}")
                yield key, outcome
                progress.advance(1, detail())

    def _outcomes(self, jobs: Iterable[tuple[Any, Job]], total: int) -> Iterator[tuple[Any, ProgramOutcome]]:
        """Runs programs in company where the toolchain allows that, and then alone those that did not pass there."""
        size = self.toolchain.company.size(total, self.workers.count)
        if size == 1:
            yield from self.workers.run(jobs)
            return
        again: list[tuple[Any, Job]] = []
        source = self._sociable(jobs, again)
        groups = iter(lambda: list(islice(source, size)), [])
        for group, outcome in self.workers.run((group, self._together(group)) for group in groups):
            if outcome.ending == "sandbox":
                yield group[0][0], outcome
            ended = set(outcome.stdout.split("\n"))
            for key, job in group:
                if job.sentinel in ended:
                    seconds = round(outcome.seconds / len(group), 4)
                    yield key, ProgramOutcome("run", 0, "exited", "", "", True, seconds)
                else:
                    again.append((key, job))
        yield from self.workers.run(again)

    def _sociable(self, jobs: Iterable[tuple[Any, Job]], others: list[tuple[Any, Job]]) -> Iterator[tuple[Any, Job]]:
        for key, job in jobs:
            if self.toolchain.sociable(job):
                yield key, job
            else:
                others.append((key, job))

    def _together(self, group: list[tuple[Any, Job]]) -> Job:
        return self.toolchain.together([job for _, job in group])


def _complaint(failed: dict[str, ProgramOutcome]) -> str:
    task_id, outcome = next(iter(failed.items()))
    text = (outcome.stderr or outcome.stdout).strip()[-400:]
    return f"{task_id}: {outcome.ending}, exit code {outcome.exit_code}. {text}"
