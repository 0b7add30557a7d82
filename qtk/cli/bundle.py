"""qtk bundle: the directory that is released."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtk.cli.options import START_AGAIN, output_options
from qtk.cli.output import ResultConsole, emit, json_option, table

if TYPE_CHECKING:
    from qtk.release.bundle import BundleReport


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@output_options(overwrite=START_AGAIN)
@click.option(
    "--resume", is_flag=True, help="Go on with what a stopped command left: files that it copied are not copied again."
)
@click.option(
    "--take", metavar="NAME", help="The model or engine to release, by its directory [default: the last quantized one]."
)
@click.option(
    "--runtime", metavar="NAME", help="The runtime that a checkpoint is started by [default: what it was made for]."
)
@click.option(
    "--sign",
    metavar="KEY",
    type=click.Path(path_type=Path),
    help="Sign the sums with this OpenSSH key: a private key, or the public half of one in ssh-agent.",
)
@json_option
def command(run: Path, as_json: bool, **given: Any) -> None:
    """Make a bundle of RUN, a run of a recipe, a folder of qtk's outputs, or one model or engine.

    The bundle holds the engine or the checkpoint, its tokenizer, a model card, the report, the verdict of the gates, the manifest of
    every step, SHA256SUMS, a bill of materials (CycloneDX), the recipe, and what starts it. Large files share their blocks with
    the run's where the file system can. Exit code 3 when the chain does not verify; then nothing is written.

    \b
    qtk bundle runs/smollm2-135m -o smollm2-135m-int4
    qtk bundle int4 -o my-model-int4 --runtime vllm
    qtk bundle runs/mine -o mine-int4 --sign ~/.ssh/id_ed25519
    """
    from qtk.recipes.bundling import bundle_sources
    from qtk.release.bundle import BundleOptions, BundleOutput, write_bundle

    output = BundleOutput(given["out"], given["sign"], overwrite=given["overwrite"], resume=given["resume"])
    options = BundleOptions(take=given["take"], runtime=given["runtime"])
    report = write_bundle(bundle_sources(run), output, options)
    emit(report, as_json, lambda console: _show(console, report), made=output.directory)


def _show(console: ResultConsole, report: BundleReport) -> None:
    from qtk.sizes import size_text

    built = "" if report.built else " (prepared, not built)"
    rows = [
        ("name", report.name),
        ("released", f"{report.artefact}{built}"),
        ("runtime", report.runtime),
        ("files", f"{report.files}, {size_text(report.bytes)}"),
        ("licence of the base", report.licence or "not named"),
        ("gate", report.gate),
        ("signed", "yes" if report.signed else "no"),
        *(("start" if number == 0 else "", line) for number, line in enumerate(report.start)),
    ]
    console.print(table(f"Bundle {report.bundle}", ("", ""), rows))
