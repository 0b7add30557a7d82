"""Tables at the widths of terminals: no number and no word is broken, and nothing is lost."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from qtk.cli.tables import table

WIDTHS = (60, 80, 120)
SHAPES = ("16/8", "64/32", "256/128", "1024/512")

# The kinds of table that the commands print, with values of the size that real ones have.
KINDS: dict[str, tuple[str, tuple[str, ...], list[tuple[object, ...]]]] = {
    "latency": (
        "engine: NVIDIA A10, float16, batch 1",
        ("input/output", "tokens/s", "±", "decode tokens/s", "TTFT ms", "token ms p50", "p90", "p99", "calls"),
        [(shape, 1053.13, 12.21, 1100.2, 1333.25, 12.22, 13.17, 114.1, 66) for shape in SHAPES],
    ),
    "divergence": (
        "Divergence of runs/smollm2-135m/engine from runs/smollm2-135m/merged, nats per token",
        ("text", "tokens", "KL", "± SE", "KL p99", "KL max", "top-1", "± SE", "perplexity", "reference"),
        [
            (text, 16384, 0.07292, 0.001234, 0.7654, 12.345, 0.8765, 0.01234, 123.4, 118.9)
            for text in ("python-stdlib-heldout", "python-docs-english", "all")
        ],
    ),
    "compare": (
        "pass@1 in per cent; tolerance 1 points",
        ("suite", "language", "before %", "after %", "change", "± SE", "lost", "gained", "p (McNemar)", "verdict"),
        [("humaneval-x", "javascript", 100.0, 78.66, -21.34, 3.201, 35, 0, 5.82e-11, "beyond tolerance")],
    ),
    "plan": (
        "codefuse-deepseek-33b: 33.3 billion parameters, INT4 group 128",
        ("--gpu", "fits", "needs", "has", "at most tokens/s", "backend"),
        [("rtx6000-ada", "yes", "18.4 GiB", "45.0 GiB", 54.08, "tensorrt-edgellm")],
    ),
    "merge": (
        "Merged into merged",
        ("adapter", "kind", "rank", "alpha", "weight", "tensors"),
        [("runs/smollm2-135m/adapters/python-adapter", "rsLoRA", 64, 128.0, 0.3333, 420)],
    ),
    "layers": (
        "layers",
        ("layer", "method", "bits", "group_size", "error_before", "error_after", "damping", "seconds"),
        [(f"model.layers.{n}.self_attn.q_proj", "gptq", 4, 128, 0.0121, 0.00000765, 0.01, 12.34) for n in (0, 29)],
    ),
    "accept": (
        "engine on NVIDIA A10",
        ("check", "figure", "", "meaning"),
        [("decode against scoring", 0.1997, "passed", "largest difference between logits (at most 0.25)")],
    ),
    "run": (
        "Run of smollm2-135m",
        ("step", "", "seconds", "directory"),
        [("divergence-engine", "taken as it is", 1234.5, "runs/smollm2-135m/divergence-engine")],
    ),
    "facts": (
        "int4",
        ("", ""),
        [
            ("method", "gptq, 4 bits, group 128, symmetric"),
            ("of which above the start", "25.3 MB"),
            ("read back", "210 linears, 4.16 bits a weight; generates 'def fibonacci(n): if n == 1: return 1 …'"),
        ],
    ),
}


def rendered(width: int, kind: str) -> list[str]:
    stream = io.StringIO()
    title, columns, rows = KINDS[kind]
    Console(file=stream, width=width, soft_wrap=True, markup=False).print(table(title, columns, rows))
    return stream.getvalue().splitlines()


def words_of(cell: object) -> list[str]:
    text = (
        f"{cell:.4g}"
        if isinstance(cell, float) and abs(cell) < 1000
        else f"{cell:.0f}"
        if isinstance(cell, float)
        else str(cell)
    )
    return text.split()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_cell_is_folded(kind: str, width: int) -> None:
    lines = rendered(width, kind)
    shown = set(re.split(r"[\s│┃]+", "\n".join(lines)))
    _, columns, rows = KINDS[kind]
    assert [word for row in (columns, *rows) for cell in row for word in words_of(cell) if word not in shown] == []
    assert max(map(len, lines[1:])) <= width


def test_a_number_stays_beside_its_unit() -> None:
    assert any("18.4 GiB" in line for line in rendered(60, "plan"))


def test_a_table_that_is_too_wide_turns_its_rows_to_columns() -> None:
    wide, narrow = rendered(120, "latency"), rendered(60, "latency")
    assert any(all(name in line for name in ("tokens/s", "p99", "calls")) for line in wide)
    assert any(all(shape in line for shape in SHAPES) for line in narrow)
    assert any(line.startswith("│ p99") for line in narrow)


def test_a_word_longer_than_the_terminal_is_left_whole() -> None:
    path = "/data/" + "x" * 90
    stream = io.StringIO()
    Console(file=stream, width=60, soft_wrap=True).print(table("", ("", ""), [("directory", path)]))
    assert path in stream.getvalue()


def test_a_column_without_values_is_left_out() -> None:
    assert table("", ("a", "published"), [(1, None), (2, None)]).columns == ("a",)
    assert table("", ("a", "b"), []).columns == ("a", "b")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("words", [("gpus",), ("list", "suites"), ("list", "backends"), ("doctor",)], ids=" ".join)
def test_the_commands_keep_to_the_width_of_the_terminal(run_qtk: Any, words: tuple[str, ...], width: int) -> None:
    done = run_qtk(*words, env={"COLUMNS": str(width)})
    assert done.returncode == 0, done.stderr
    tables = [line for line in done.stdout.splitlines() if line.startswith(("│", "┃", "┏"))]
    assert tables
    assert max(map(len, tables)) <= width


def test_a_pipe_has_no_width(run_qtk: Any) -> None:
    done = run_qtk("list", "suites", env={"COLUMNS": ""})
    assert any("multipl-e" in line and "bash" in line for line in done.stdout.splitlines())
