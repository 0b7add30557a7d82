"""Runs the compiling process (worker.py), shows its progress, and says what its failures mean."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path

from qtk.engines.outside_tool import keep_log, run_logged
from qtk.engines.own_python import own_paths, own_python
from qtk.engines.tensorrt.worker import MACHINE_LACKS, CompileRequest
from qtk.errors import InputError, MachineError, listing
from qtk.progress import Progress

_TAIL_LINES = 12


def run_compiler(request: CompileRequest, environment: Mapping[str, str] | None = None) -> dict[str, object]:
    """Compiles one graph, with the messages of the process in a .log beside the plan. Returns version, seconds and peak
    memory.

    MachineError when the process was killed, crashed or lacks something, InputError with TensorRT's reasons when it refuses
    the graph. The log is kept beside the output directory then.
    """
    path, log = request.plan.with_suffix(".request.json"), request.plan.with_suffix(".log")
    path.write_text(request.model_dump_json(), encoding="utf-8")
    facts: dict[str, object] = {}
    with Progress("tensorrt", None, "steps") as progress:

        def on_line(line: str) -> bool:
            if not line.startswith("{"):
                return False
            facts.clear()
            facts.update(json.loads(line))
            progress.advance(1, f"{request.graph.stem}: {facts.get('name', '')}")
            return True

        words = own_python("-m", "qtk.engines.tensorrt.worker", str(path))
        code = run_logged(words, log, environment={**own_paths(), **(environment or {})}, on_line=on_line)
    path.unlink()
    if code or facts.pop("event", None) != "done":
        raise _failure(request.graph.name, code, log)
    return facts


def _failure(graph: str, code: int, log: Path) -> InputError | MachineError:
    """The error for a failed compile: the log tells a lack of memory from a crash of the library."""
    text = log.read_text(encoding="utf-8", errors="replace")
    tail = f"Its log is kept as {keep_log(log)}; it ends with:\n{listing(text.strip().splitlines()[-_TAIL_LINES:])}"
    if code == -signal.SIGKILL or (code < 0 and "bad_alloc" in text):
        return MachineError(f"The compiler of {graph} was killed, most likely because memory ran out. {tail}")
    if code < 0:
        return MachineError(f"The compiler of {graph} crashed ({signal.Signals(-code).name}) inside TensorRT. {tail}")
    if code == MACHINE_LACKS:
        return MachineError(f"This machine cannot compile {graph}. {tail}")
    return InputError(f"TensorRT could not compile {graph} (exit code {code}). {tail}")
