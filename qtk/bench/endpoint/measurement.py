"""`qtk bench latency` of endpoints: alone or by turns with engines, then under load."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from qtk.bench.endpoint.load import measure_load
from qtk.bench.endpoint.load_result import LoadLevel, load_chart
from qtk.bench.endpoint.options import EndpointOptions, LoadOptions, is_address
from qtk.bench.endpoint.timed_endpoint import TimedEndpoint
from qtk.bench.latency_result import LatencyReport
from qtk.bench.latency_run import CallDone, measure_timed
from qtk.bench.options import LatencyOptions
from qtk.bench.timed import Timed, TimedEngine
from qtk.engines.sessions.session import open_session
from qtk.errors import InputError, MachineError, QtkError
from qtk.progress import Progress, warn


class EndpointRun(BaseModel):
    """What is measured and how, as the manifest records it."""

    model_config = ConfigDict(frozen=True)
    addresses: tuple[str, ...]
    latency: LatencyOptions
    endpoint: EndpointOptions
    load: LoadOptions


class EndpointReport(LatencyReport):
    """A latency report of endpoints. load: the levels, in the order in which they were measured."""

    load: tuple[LoadLevel, ...] = ()

    @property
    def failure(self) -> QtkError | None:
        """What the command fails with although it has a result: shapes or levels that could not be measured."""
        down = [f"{level.shape}, {level.load}: {_reasons(level)}" for level in self.load if not level.requests]
        missing = [*self.failures, *down]
        if not missing:
            return None
        return MachineError("Not everything could be measured. " + " ".join(missing))


def measure_endpoints(targets: Sequence[str | Path], run: EndpointRun) -> EndpointReport:
    """Measures addresses and engine directories by turns, call by call, then each endpoint at the levels of load.

    What fails after the first shape is in the report's `failures`, and all else is kept. InputError and MachineError as of
    `TimedEndpoint.open`, of `qtk.bench.latency_run.measure_engines`, and where no shape could be measured at all.
    """
    options, failed = run.latency, list[tuple[str, Exception]]()
    levels = run.load.clients(), run.load.rates()  # read before anything is measured
    with contextlib.ExitStack() as stack:
        timed: list[Timed] = []
        for target in targets:
            if is_address(str(target)):
                timed.append(stack.enter_context(TimedEndpoint.open(str(target), run.endpoint, run.load)))
            else:
                timed.append(TimedEngine(stack.enter_context(open_session(Path(target), options.threads))))
        endpoints = [one for one in timed if isinstance(one, TimedEndpoint)]
        names = [one.figures(0, []).engine for one in timed]
        if len(set(names)) < len(names):
            raise InputError(f"What is to be compared needs names of its own, not {', '.join(names)}.")
        with Progress(f"latency of {', '.join(names)}", None, "s") as progress:

            def told(call: CallDone) -> None:
                progress.reach(call.elapsed, call.elapsed + call.left, call.detail)

            report = measure_timed(
                timed, options, on_call=told, on_failure=lambda shape, error: failed.append((shape, error))
            )
        if failed and not any(engine.shapes for engine in report.engines):
            raise failed[0][1]
        load: list[LoadLevel] = []
        if any(levels) and not failed:
            for endpoint in endpoints:
                load += measure_load(endpoint, options, run.load)
        remarks = [remark for endpoint in endpoints for remark in endpoint.remarks()]
    remarks += [f"{level.shape}, {level.load}: {_reasons(level)}" for level in load if level.failed]
    for warning in (*report.warnings, *remarks):
        warn(warning)
    return EndpointReport(
        **{
            **report.model_dump(),
            "warnings": [*report.warnings, *remarks],
            "failures": [f"{shape} could not be measured: {error}" for shape, error in failed],
            "load": tuple(load),
        }
    )


def draw_load(report: EndpointReport, path: Path) -> None:
    """Writes throughput against latency as an .svg file."""
    path.write_text(load_chart(report.load).file(), encoding="utf-8")


def _reasons(level: LoadLevel) -> str:
    said = ", ".join(f"{count} times {reason.rstrip('.')}" for reason, count in level.failed.items())
    return f"{sum(level.failed.values())} of {level.requests + sum(level.failed.values())} requests failed ({said})"
