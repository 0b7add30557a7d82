"""qtk bench: the measurements, each a subcommand in a file of its own."""

from __future__ import annotations

import click

from qtk.cli.main import LazyGroup

SUBCOMMANDS = {
    "latency": ("bench_latency", "Tokens a second, time to first token and between tokens."),
    "divergence": ("bench_divergence", "KL divergence, perplexity and top-1 agreement with a reference model."),
    "accuracy": ("bench_accuracy", "Pass rates on code suites."),
    "compare": ("bench_compare", "Compare two accuracy results: flips, paired test, verdict."),
    "leaderboard": ("bench_leaderboard", "Average score and Win Rate among published models."),
}


@click.group(cls=LazyGroup, lazy=SUBCOMMANDS)
def command() -> None:
    """Measure latency, divergence and accuracy; compare results.

    \b
    qtk bench latency engine
    qtk bench divergence int4 --reference merged
    """
