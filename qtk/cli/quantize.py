"""qtk quantize: a float model directory to an INT4 one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from qtk.calibration.options import CalibrationOptions
from qtk.cli.options import build, options_from, require_valid
from qtk.cli.output import emit, json_option, table
from qtk.progress import note
from qtk.quantization.options import QuantizeOptions


@click.command(name="quantize")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Directory to write.")
@options_from(QuantizeOptions)
@options_from(CalibrationOptions)
@click.option("--format", "old_container", hidden=True, help="The old name of --container.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output directory once the new one is complete.")
@click.option("--resume", is_flag=True, help="Go on after the last finished block of a run that was stopped.")
@click.option("--verbose", is_flag=True, help="Print the table of all layers as well.")
@json_option
def command(
    model: Path,
    output: Path,
    old_container: str | None,
    overwrite: bool,
    resume: bool,
    verbose: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Quantize a float model to INT4.

    \b
    qtk quantize merged -o int4
    qtk quantize merged -o int4 --calibration train.jsonl --chat-format codefuse --samples 256
    qtk quantize merged -o int4 --effort best
    qtk quantize merged -o int4 --method rtn --group-size 64 --asym
    qtk quantize merged -o int4 --override "*.down_proj=bits:8"
    """
    from qtk.quantization.quantize import quantize_model

    if old_container is not None:
        note("--format is now called --container.")
        values["container"] = old_container
    require_valid(values, QuantizeOptions, CalibrationOptions)
    report = quantize_model(
        model,
        output,
        build(QuantizeOptions, values),
        build(CalibrationOptions, values),
        overwrite=overwrite,
        resume=resume,
    )

    def show(console: Console) -> None:
        if verbose:
            console.print(_layer_table(output))
        rows: list[tuple[str, object]] = [
            (
                "method",
                f"{report.method}, {report.bits} bits, group {report.group_size}, {'symmetric' if report.symmetric else 'asymmetric'}",
            ),
            ("container", report.format),
            ("linears quantized", report.linears),
            (
                "calibration",
                f"{report.calibration_rows} of {report.calibration_rows_offered} rows, {report.calibration_tokens} tokens, "
                f"{report.compute_dtype}",
            ),
            ("size", f"{report.float_bytes / 1e6:.1f} MB -> {report.quantized_bytes / 1e6:.1f} MB"),
            ("time", f"{report.seconds:.1f} s"),
            ("peak memory", f"{report.peak_memory_bytes / 1e9:.2f} GB"),
        ]
        if report.mean_error_after is not None and report.mean_error_before is not None:
            change = f"{report.mean_error_before:.2e} rounded to nearest -> {report.mean_error_after:.2e}"
            rows.insert(4, ("mean output error", change))
        if report.held_back_kl:
            found = ", ".join(f"{method} {kl:.4f}" for method, kl in report.held_back_kl.items())
            rows.insert(4, ("KL on held-back rows", found))
        check = report.read_back
        text = repr(check.text) + (f", {check.loops} of {check.texts} texts end in a loop" if check.loops else "")
        if check.repeats:
            text += ": IT REPEATS ITSELF, the float model does not"
        rows.append(
            ("read back", f"{check.linears} linears, {check.bits_per_weight:.2f} bits a weight; generates {text}")
        )
        if report.fell_back_to_rtn:
            rows.append(("ROUNDED TO NEAREST", ", ".join(report.fell_back_to_rtn)))
        console.print(table(str(output), ("", ""), rows))

    emit(report, as_json, show)


def _layer_table(output: Path) -> Any:
    import json

    from qtk.quantization.report import LOG_NAME

    lines = [json.loads(line) for line in (output / LOG_NAME).read_text(encoding="utf-8").splitlines()]
    columns = ("layer", "method", "bits", "group_size", "error_before", "error_after", "damping", "seconds")
    return table("layers", columns, [[line[column] for column in columns] for line in lines])
