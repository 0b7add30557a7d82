"""qtk publish: a bundle on a hub, or in a directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtk.cli.output import ResultConsole, emit, json_option, table
from qtk.errors import GateFailed, listing

if TYPE_CHECKING:
    from qtk.release.publish import PublishReport


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("target", metavar="hf://ORG/NAME|modelscope://ORG/NAME|file://DIR")
@click.option("--yes", is_flag=True, help="Upload; without this nothing is changed anywhere.")
@click.option("--private", is_flag=True, help="Make a new repository private; one that is public is refused.")
@click.option("--revision", metavar="BRANCH", help="Branch to publish on, which is made where it is not there.")
@click.option(
    "--despite-gate", is_flag=True, help="Publish although gates failed or none was judged; the card says so."
)
@click.option(
    "--replace",
    is_flag=True,
    help="Publish although other content is there: files of the same name are replaced, all others stay.",
)
@json_option
def command(bundle: Path, target: str, as_json: bool, **given: Any) -> None:
    """Publish BUNDLE, which `qtk bundle` made: on the Hugging Face hub, on ModelScope, or in a directory.

    Without --yes it says what it would do: each file, its size, and whether it is there already. What is there as it is here is
    never sent again, so a stopped upload goes on where it was. Exit code 3, and nothing is sent, when a file was changed, when
    gates failed, when other content is there, or when a file holds an access token or a path of this machine.

    \b
    qtk publish smollm2-135m-int4 hf://me/smollm2-135m-int4
    qtk publish smollm2-135m-int4 hf://me/smollm2-135m-int4 --private --yes
    qtk publish smollm2-135m-int4 file:///mnt/models/smollm2-135m-int4 --yes
    """
    from qtk.release.publish import PublishOptions, publish_at

    report = publish_at(bundle, target, PublishOptions(**given))
    emit(report, as_json, lambda console: _show(console, report), _failure(report))


def _failure(report: PublishReport) -> GateFailed | None:
    if not report.refused:
        return None
    return GateFailed(f"{report.bundle} is not published at {report.target}:\n{listing(report.refused)}")


def _show(console: ResultConsole, report: PublishReport) -> None:
    from qtk.sizes import size_text

    rows: list[tuple[str, str | None, str]] = [(f.file, size_text(f.bytes), f.status) for f in report.files]
    rows += [(name, None, "stays") for name in report.others]
    console.print(table(f"{report.bundle} at {report.target}", ("file", "size", "there"), rows))
    size = size_text(sum(file.bytes for file in report.to_send))
    if report.published:
        console.print(f"Published: {len(report.to_send)} files, {size} sent. {report.url}")
    elif not report.refused:
        new = "" if report.exists else ", in a new place"
        console.print(f"Nothing was changed. --yes would send {len(report.to_send)} files, {size}{new}.")
