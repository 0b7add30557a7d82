"""Numbers in sentences: one row, two rows."""

from __future__ import annotations

import re

import pytest

from qtk.quantization.report import QuantizeReport, ReadBack
from qtk.wording import counted


def test_nouns() -> None:
    assert [counted(n, "row") for n in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
    assert [counted(n, "directory") for n in (1, 3)] == ["1 directory", "3 directories"]


def read_back(loops: int, *, repeats: bool = False) -> QuantizeReport:
    return QuantizeReport(
        output="int4", method="rtn", format="gptq", bits=4, group_size=64, symmetric=True, linears=1, left_in_float=[],
        fell_back_to_rtn=[], calibration_rows=0, calibration_rows_offered=0, calibration_tokens=0,
        compute_dtype="float32", mean_error_before=None, mean_error_after=None, float_bytes=1, quantized_bytes=1,
        seconds=1.0, peak_memory_bytes=25_276_500_000, activation_bytes=0, spilled_bytes=0, held_back_kl={},
        read_back=ReadBack(linears=1, bits_per_weight=4.25, blocks=30, tokens=128, largest_difference=2e-7,
                           texts=4, loops=loops, text="x", repeats=repeats),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("loops", "repeats", "said"),
    [
        (0, False, "1 linear, 4.25 bits a weight, 30 blocks as quantized, to 2e-07; generates 'x'"),
        (2, False, "1 linear, 4.25 bits a weight, 30 blocks as quantized, to 2e-07; generates 'x'"),
        (3, False, "; 3 of 4 texts end in a loop, as the float model's do"),
        (4, True, ": IT REPEATS ITSELF, 4 of 4 texts end in a loop, the float model does not"),
    ],
)
def test_the_read_back_says_whether_its_loops_are_bad(
    loops: int, repeats: bool, said: str, monkeypatch, run_qtk
) -> None:
    monkeypatch.setattr(
        "qtk.quantization.quantize.quantize_model", lambda *words, **more: read_back(loops, repeats=repeats)
    )
    done = run_qtk("quantize", "model", "-o", "int4", env={"COLUMNS": ""})
    row = next(line for line in done.stdout.splitlines() if "read back" in line)
    assert re.split(r" *│ *", row)[2].endswith(said)
    assert "none" in next(line for line in done.stdout.splitlines() if "calibration" in line)
    assert "25.3 GB" in done.stdout


def test_one_is_not_many_in_the_tables(tiny, tmp_path, run_qtk) -> None:
    assert run_qtk("quantize", tiny(), "-o", tmp_path / "int4", "--method", "rtn").returncode == 0
    words = ("--max-batch-size", 1, "--max-input-len", 16, "--max-output-len", 8)
    built = run_qtk("build-engine", tmp_path / "int4", "-o", tmp_path / "engine", *words)
    assert "16 + 8 tokens, 1 row " in built.stdout
    assert run_qtk("report", tmp_path).returncode == 0
    text = (tmp_path / "report" / "report.md").read_text()
    assert "results of 2 directories." in text
    assert "| calibration | none |" in text
    assert not re.search(r"\b1 (rows|tokens|directories|tensors|stages)\b|\(s\)|\b0 rows", text)


def test_a_place_that_takes_no_files_is_no_bug(tiny, tmp_path, run_qtk) -> None:
    done = run_qtk("quantize", tiny(), "-o", "/proc/x", "--method", "rtn")
    assert (done.returncode, "a bug" in done.stderr) == (2, False), done.stderr
    assert "/proc takes no new files" in done.stderr
    done = run_qtk("merge", tiny(), tmp_path, "-o", "/proc/x")
    assert (done.returncode, "a bug" in done.stderr) == (2, False), done.stderr
