"""qtk quantize: a float model directory to an INT4 one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtk.calibration.options import CalibrationOptions
from qtk.cli.options import START_AGAIN, build, old_spelling, options_from, output_options, require_valid
from qtk.cli.output import emit, json_option, table
from qtk.errors import by_layer
from qtk.quantization.options import QuantizeOptions
from qtk.sizes import size_text
from qtk.targets.serving import transformers_sentence
from qtk.wording import counted

if TYPE_CHECKING:
    from qtk.cli.output import ResultConsole
    from qtk.cli.tables import Sheet
    from qtk.quantization.report import QuantizeReport, ReadBack


@click.command(name="quantize")
@click.argument("model", type=click.Path(path_type=Path))
@output_options(overwrite=START_AGAIN)
@options_from(QuantizeOptions)
@options_from(CalibrationOptions)
@old_spelling("--format", "--container")
@click.option("--resume", is_flag=True, help="Continue a run that was stopped, after its last finished block.")
@click.option("--verbose", is_flag=True, help="Print the table of all layers as well.")
@json_option
def command(model: Path, out: Path, overwrite: bool, resume: bool, verbose: bool, as_json: bool, **values: Any) -> None:
    """Quantize a float model, a directory or an id of the Hugging Face hub, to INT4.

    \b
    qtk quantize merged -o int4
    qtk quantize Qwen/Qwen2.5-Coder-0.5B-Instruct@main -o int4
    qtk quantize merged -o int4 --calibration train.jsonl --chat-format codefuse --samples 256
    qtk quantize merged -o int4 --effort best
    qtk quantize merged -o int4 --method rtn --group-size 64 --asym
    qtk quantize merged -o int4 --override "*.down_proj=bits:8"
    """
    from qtk.quantization.quantize import quantize_model

    require_valid(values, QuantizeOptions, CalibrationOptions)
    options, calibration = build(QuantizeOptions, values), build(CalibrationOptions, values)
    report = quantize_model(model, out, options, calibration, overwrite=overwrite, resume=resume)

    def show(console: ResultConsole) -> None:
        if verbose:
            console.print(_layer_table(out))
        console.print(table(str(out), ("", ""), _facts(report)))
        if report.serve:
            console.print_command("Serve it", shlex.split(report.serve))

    emit(report, as_json, show, made=out)


def _facts(report: QuantizeReport) -> list[tuple[str, object]]:
    """What is worth a row of the table: what could not be measured has none."""
    symmetry = "symmetric" if report.symmetric else "asymmetric"
    rows: list[tuple[str, object]] = [
        ("method", f"{report.method}, {report.bits} bits, group {report.group_size}, {symmetry}"),
        ("container", report.format),
        (
            "runs in",
            f"{', '.join(report.runtimes) or 'nothing that qtk knows'}; {transformers_sentence(report.format)}",
        ),
        ("linears quantized", report.linears),
        ("calibration", _calibration(report)),
    ]
    if report.held_back_kl:
        rows.append(
            ("KL on held-back rows", ", ".join(f"{method} {kl:.4f}" for method, kl in report.held_back_kl.items()))
        )
    if report.mean_error_after is not None and report.mean_error_before is not None:
        change = f"{report.mean_error_before:.2e} rounded to nearest -> {report.mean_error_after:.2e}"
        rows.append(("mean output error on the calibration text", change))
    rows += [
        ("size", f"{size_text(report.float_bytes)} -> {size_text(report.quantized_bytes)}"),
        ("time", f"{report.seconds:.1f} s"),
        ("peak memory", size_text(report.peak_memory_bytes)),
        ("read back", _read_back(report)),
    ]
    if report.fell_back_to_rtn:
        rows.append(("ROUNDED TO NEAREST", "\n".join(by_layer(report.fell_back_to_rtn))))
    return rows


def _calibration(report: QuantizeReport) -> str:
    """What was read of the text; rounding to nearest reads none."""
    if not report.calibration_rows_offered:
        return "none"
    rows = f"{report.calibration_rows} of {counted(report.calibration_rows_offered, 'row')}"
    return f"{rows}, {counted(report.calibration_tokens, 'token')}, {report.compute_dtype}"


def _read_back(report: QuantizeReport) -> str:
    check = report.read_back
    stored = f"{counted(check.linears, 'linear')}, {check.bits_per_weight:.2f} bits a weight"
    compared = f"{counted(check.blocks, 'block')} as quantized, to {check.largest_difference:.0e}"
    written = f"; generates {check.text!r}{_loops(check)}" if check.texts else ""
    return f"{stored}, {compared}{written}"


def _loops(check: ReadBack) -> str:
    """What the texts that end in a loop say of the model. Up to half of them say nothing: some prompts invite one."""
    if 2 * check.loops <= check.texts:
        return ""
    texts = f"{check.loops} of {counted(check.texts, 'text')} end in a loop"
    return (
        f": IT REPEATS ITSELF, {texts}, the float model does not"
        if check.repeats
        else f"; {texts}, as the float model's do"
    )


def _layer_table(directory: Path) -> Sheet:
    import json

    from qtk.quantization.report import LOG_NAME

    lines = [json.loads(line) for line in (directory / LOG_NAME).read_text(encoding="utf-8").splitlines()]
    columns = ("layer", "method", "bits", "group_size", "error_before", "error_after", "damping", "seconds")
    return table("layers", columns, [[line[column] for column in columns] for line in lines])
