"""qtk serve: an engine over HTTP."""

from __future__ import annotations

from pathlib import Path

import click

from qtk.cli.options import build, options_from
from qtk.install_hints import missing_package
from qtk.serving.options import ServeOptions


@click.command()
@click.argument("engine", type=click.Path(path_type=Path))
@options_from(ServeOptions)
def command(engine: Path, **values: object) -> None:
    """Serve an engine to clients of OpenAI's API: completions, chat, models; /health, and Prometheus' /metrics.

    Clients are served at once where the runtime can, else one after the other. QTK_API_KEY sets a key that they must send.
    SIGTERM finishes what runs and ends.

    \b
    qtk serve engine
    qtk serve engine --host 0.0.0.0 --port 8080 --model-name my-model
    """
    options = build(ServeOptions, values)
    try:
        from qtk.serving.server import serve_engine
    except ImportError as error:
        package = (error.name or "uvicorn").partition(".")[0].replace("_", "-")
        raise missing_package("Serving an engine", package, "serve") from None
    serve_engine(engine, options, lambda line: print(line, flush=True))
