"""Python: the program is forked from the worker's own interpreter, so it starts in milliseconds."""

from __future__ import annotations

from qtk.bench.accuracy.languages.base import Requirement, Toolchain, Verdict, new_sentinel
from qtk.bench.accuracy.options import Rules
from qtk.bench.accuracy.suites.tasks import Task
from qtk.sandbox.job import Job, Outcome
from qtk.sandbox.supervisor import MEMORY_ERROR_EXIT, SYNTAX_ERROR_EXIT


class Python(Toolchain):
    """Solution, then tests, as one script."""

    language = "python"
    requirements = (Requirement("No module named 'numpy'", "numpy", "pip install numpy"),)

    def job(self, solution: str, task: Task, environment: dict[str, str]) -> Job:
        files = {"main.py": f"{solution}\n{task.tests}\n"}
        return Job(files, (self._run(script="main.py"),), new_sentinel(), environment, self.limits)

    def verdict(self, outcome: Outcome, rules: Rules) -> Verdict:
        if outcome.ending == "exited" and outcome.exit_code == SYNTAX_ERROR_EXIT:
            return "compile_error"
        if outcome.ending == "exited" and outcome.exit_code == MEMORY_ERROR_EXIT:
            return "out_of_memory"
        return super().verdict(outcome, rules)
