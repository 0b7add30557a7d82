"""qtk bench accuracy: pass rates on code suites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from qtk.bench.accuracy.options import AccuracyOptions, ModelOptions
from qtk.cli.options import build, options_from
from qtk.cli.output import emit, json_option, table

_LIKELIHOOD = ("suite", "language", "tasks", "mean", "± SE")
_QUESTIONS = ("set", "questions", "generation %", "± SE", "perplexity %", "± SE", "kept", "%", "commonest %", "note")
_HARNESS = ("task", "metric", "filter", "documents", "examples", "value", "± SE")


@click.command("accuracy")
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--generations", type=click.Path(path_type=Path), help="Score the answers in this JSONL file instead.")
@click.option(
    "--save-generations", type=click.Path(path_type=Path), help="Also write the model's answers to this file."
)
@options_from(AccuracyOptions)
@options_from(ModelOptions)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Directory to write.")
@click.option("--resume", is_flag=True, help="Continue a run that was stopped.")
@click.option("--overwrite", is_flag=True, help="Replace an existing directory.")
@json_option
def command(
    model: Path | None,
    generations: Path | None,
    save_generations: Path | None,
    output: Path,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Let MODEL (an engine or a checkpoint) write programs and run them in a sandbox, or answer questions; count what is right.

    \b
    qtk bench accuracy engine --suite humaneval-x:python,java --data data -o scores
    qtk bench accuracy engine --suite mbpp --prompt chat --max-new-tokens 256 -o scores
    qtk bench accuracy engine --suite likelihood:python -o likelihood
    qtk bench accuracy engine --suite lm-eval:task.yaml --suite lm-eval:arc_easy --hub -o scores
    qtk bench accuracy engine --suite nlp:wic,copa,rte --data data --limit 100 -o scores
    qtk bench accuracy --suite humaneval --generations answers.jsonl -o scores
    """
    from qtk.bench.accuracy.accuracy_run import run_accuracy
    from qtk.bench.results import require_writable
    from qtk.errors import InputError

    if save_generations is not None:
        if model is None:
            raise InputError("--save-generations keeps a model's answers; give a MODEL.")
        require_writable(save_generations, overwrite=overwrite)
    result = run_accuracy(
        build(AccuracyOptions, values),
        output,
        answers=generations,
        model=model,
        model_options=build(ModelOptions, values),
        save_answers=save_generations,
        resume=resume,
        overwrite=overwrite,
    )
    ks = [rate.k for rate in result.scores[0].pass_at] if result.scores else []
    columns = ("suite", "language", "tasks", *(text for k in ks for text in (f"pass@{k} %", "± SE")), "verdicts")
    rows = [
        (
            score.suite,
            score.language,
            len(score.tasks),
            *(
                None if value is None else round(100 * value, 2)
                for rate in score.pass_at
                for value in (rate.value, rate.standard_error)
            ),
            ", ".join(f"{count} {verdict}" for verdict, count in score.verdicts.items()),
        )
        for score in result.scores
    ]

    likelihoods = [
        (score.suite, score.language, len(score.tasks), score.mean, score.standard_error) for score in result.likelihood
    ]

    choices = [
        (
            score.title,
            len(score.tasks),
            *(
                None if value is None else round(100 * value, 2)
                for rate in (score.generation, score.perplexity)
                for value in (rate.value, rate.standard_error)
            ),
            score.kept,
            round(100 * score.rate(score.kept).value, 2),
            round(100 * score.majority, 2),
            f"{score.no_letter} without a letter" if score.no_letter else None,
        )
        for score in result.choices
    ]

    harness = [
        (
            score.language,
            metric.name,
            metric.filter,
            len(score.tasks),
            score.examples,
            metric.value,
            metric.standard_error,
        )
        for score in result.lm_eval
        for metric in score.metrics
    ]

    def show(console: Console) -> None:
        if rows:
            console.print(table(f"Accuracy, rules: {result.rules}; sandbox: {result.sandbox['level']}", columns, rows))
        if likelihoods:
            console.print(table("Log-likelihood of the references, nats per token", _LIKELIHOOD, likelihoods))
        if choices:
            console.print(table("Questions, by generation and by perplexity", _QUESTIONS, choices))
        if harness:
            console.print(table("Tasks of lm-evaluation-harness", _HARNESS, harness))
        for name, reason in result.skipped.items():
            console.print(f"not scored: {name}: {reason}")

    emit(result, as_json, show)
