"""qtk bench accuracy: pass rates on code suites, and scores of questions and known solutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from qtk.bench.accuracy.options import AccuracyOptions, ModelOptions
from qtk.bench.endpoint.options import EndpointOptions, is_address
from qtk.cli.options import START_AGAIN, build, options_from, output_options, ray_option
from qtk.cli.output import emit, json_option, table


@click.command("accuracy")
@click.argument("place", required=False, metavar="[MODEL|ADDRESS]")
@click.option("--generations", type=click.Path(path_type=Path), help="Score the answers in this JSONL file instead.")
@click.option(
    "--save-generations", type=click.Path(path_type=Path), help="Also write the model's answers to this file."
)
@options_from(AccuracyOptions)
@options_from(ModelOptions)
@options_from(EndpointOptions)
@output_options(overwrite=START_AGAIN)
@click.option("--resume", is_flag=True, help="Continue a run that was stopped.")
@ray_option("tasks, in a shard for each node,")
@json_option
def command(
    place: str | None,
    generations: Path | None,
    save_generations: Path | None,
    out: Path,
    resume: bool,
    ray: str | None,
    overwrite: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Let MODEL (an engine, a checkpoint or an id of the hub) write programs and run them in a sandbox, or answer questions;
    count what is right. A model at the ADDRESS of an endpoint of OpenAI's API is asked for programs.

    \b
    qtk bench accuracy engine --suite humaneval-x:python,java --data data -o scores
    qtk bench accuracy engine --suite mbpp --chat-format model --max-new-tokens 256 -o scores
    qtk bench accuracy engine --suite likelihood:python -o likelihood
    qtk bench accuracy engine --suite lm-eval:task.yaml --suite lm-eval:arc_easy --hub -o scores
    qtk bench accuracy engine --suite nlp:wic,copa,rte --data data --limit 100 -o scores
    qtk bench accuracy http://127.0.0.1:8000/v1 --model my-model --suite mbpp --chat-format model -o scores
    qtk bench accuracy --suite humaneval --generations answers.jsonl -o scores
    qtk bench accuracy engine --suite multipl-e --data data --ray auto -o scores
    """
    from qtk.errors import InputError

    options, model_options = build(AccuracyOptions, values), build(ModelOptions, values)
    endpoint = build(EndpointOptions, values)
    if (place is None) == (generations is None):
        raise InputError("Give either a MODEL or engine, or --generations FILE.")
    if save_generations is not None and place is None:
        raise InputError("--save-generations keeps a model's answers; give a MODEL.")

    import shutil

    from qtk.bench.accuracy.accuracy_run import Output, run_accuracy
    from qtk.bench.accuracy.checks import require_programs
    from qtk.bench.accuracy.model_source import ANSWERS_NAME
    from qtk.bench.accuracy.ray_shards import on_ray
    from qtk.bench.accuracy.results.tables import score_tables
    from qtk.bench.accuracy.source_place import SourcePlace
    from qtk.bench.results import require_writable

    if save_generations is not None:
        require_writable(save_generations, overwrite=overwrite)
        require_programs(options)
    if endpoint != EndpointOptions() and not (place is not None and is_address(place)):
        raise InputError("Options of endpoints need the address of one, such as http://127.0.0.1:8000/v1.")
    named = SourcePlace(place or str(generations), options.rules, place is None, model_options, endpoint)
    result = run_accuracy(options, named.open(), Output(out, resume, overwrite), on_ray(named, ray))
    if save_generations is not None and (out / ANSWERS_NAME).exists():  # else no language could be scored
        shutil.copyfile(out / ANSWERS_NAME, save_generations)

    def show(console: Console) -> None:
        console.print(f"rules: {result.rules}; sandbox: {result.sandbox.get('level', 'not needed')}")
        for scores in score_tables(result.scores):
            console.print(table(scores.title, scores.columns, scores.rows))
        for name, reason in result.skipped.items():
            console.print(f"not scored: {name}: {reason}")

    emit(result, as_json, show, made=out)
