"""The figures in a result's directory as tables, for `qtk inspect`. Reads JSON; loads nothing that measures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qtk.bench.accuracy.results.comparison import read_comparison
from qtk.bench.accuracy.results.leaderboard import Leaderboard
from qtk.bench.accuracy.results.result import read_result
from qtk.bench.accuracy.results.tables import ResultTable, compared_tables, score_tables
from qtk.bench.latency_result import LatencyReport
from qtk.bench.results import RESULT_NAME
from qtk.errors import InputError


def figures(directory: Path, kind: str) -> list[ResultTable]:
    """The tables of a result. kind: as its manifest says. Empty for a kind that has none (a report, another version's)."""
    tables = _TABLES.get(kind)
    try:
        return [] if tables is None else tables(directory)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(
            f"{directory / RESULT_NAME} is not the result of this kind that qtk writes: {error!r}."
        ) from None


def verdict(directory: Path, kind: str) -> str | None:
    """The verdict that the result itself records; None where it gives none."""
    if kind not in ("acceptance", "accuracy-comparison"):
        return None
    if kind == "accuracy-comparison":
        return read_comparison(directory).verdict
    found = _content(directory).get("verdict")
    return None if found is None else str(found)


def _content(directory: Path) -> Mapping[str, Any]:
    content: Mapping[str, Any] = json.loads((directory / RESULT_NAME).read_bytes())
    return content


def _latency_tables(content: Mapping[str, Any]) -> list[ResultTable]:
    report = LatencyReport.model_validate(content)
    columns = ("input/output", "tokens/s", "±", "decode tokens/s", "TTFT ms", "calls")
    tables = [
        ResultTable(
            f"latency of {engine.engine}",
            columns,
            tuple(
                (s.name, s.tokens_per_s, s.standard_error, s.decode_tokens_per_s, s.ttft_ms.p50, s.runs)
                for s in engine.shapes
            ),
        )
        for engine in report.engines
    ]
    if report.ratios:
        rows = tuple((r.engine, r.shape, r.ratio, r.standard_error, r.in_doubt) for r in report.ratios)
        headings = ("engine", "input/output", "times as fast", "±", "in doubt")
        tables.append(ResultTable(f"against {report.engines[0].engine}", headings, rows))
    return tables


def _divergence_table(result: Mapping[str, Any]) -> ResultTable:
    columns = ("text", "tokens", "KL", "± SE", "top-1", "perplexity", "reference")
    rows = tuple(
        (
            text["text"],
            text["tokens"],
            text["kl"]["mean"],
            text["kl"]["standard_error"],
            text["top1_agreement"]["mean"],
            text["perplexity"],
            text["perplexity_reference"],
        )
        for text in (*result["texts"], result["pooled"])
    )
    return ResultTable("divergence from the float model, nats per token", columns, rows)


def _acceptance(directory: Path) -> list[ResultTable]:
    content = _content(directory)
    rows = tuple(
        (check["name"], check["figure"], "passed" if check["passed"] else "FAILED", check["meaning"])
        for check in content["checks"]
    )
    tables = [ResultTable(f"checks of {content['engine']}", ("check", "figure", "result", "meaning"), rows)]
    tables += _latency_tables(content["latency"]) if content["latency"] else []
    return tables + ([_divergence_table(content["divergence"])] if content["divergence"] else [])


def _leaderboard(directory: Path) -> list[ResultTable]:
    return [Leaderboard.model_validate(_content(directory)).table()]


_TABLES: dict[str, Callable[[Path], list[ResultTable]]] = {
    "latency": lambda directory: _latency_tables(_content(directory)),
    "divergence": lambda directory: [_divergence_table(_content(directory))],
    "acceptance": _acceptance,
    "accuracy": lambda directory: score_tables(read_result(directory).scores),
    "accuracy-comparison": lambda directory: compared_tables(read_comparison(directory).rows),
    "leaderboard": _leaderboard,
}
