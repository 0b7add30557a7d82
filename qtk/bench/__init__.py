"""Measurements: `latency`, `divergence` and `accuracy` make results, `compare` compares two of accuracy.

The functions of `qtk.bench`, which load nothing heavy before they are called. Each is what the command of its name runs. With
`out` the result is also written to that new directory, with a manifest, from which `qtk report` makes a report.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import qtk.bench.accuracy  # noqa: F401 - loaded first, so that the name in this package means the function below
from qtk.bench.accuracy.options import AccuracyOptions, ModelOptions
from qtk.bench.accuracy.results.score import CompareOptions
from qtk.bench.endpoint.options import EndpointOptions, LoadOptions, is_address
from qtk.bench.options import DivergenceOptions, LatencyOptions

if TYPE_CHECKING:
    from pydantic import BaseModel

    from qtk.bench.accuracy.results.comparison import Comparison
    from qtk.bench.accuracy.results.result import AccuracyResult
    from qtk.bench.divergence_result import DivergenceResult
    from qtk.bench.latency_result import LatencyReport

__all__ = ["accuracy", "compare", "divergence", "latency"]


def latency(
    engine: str | Path | Sequence[str | Path],
    options: LatencyOptions = LatencyOptions(),
    *,
    endpoint: EndpointOptions = EndpointOptions(),
    load: LoadOptions = LoadOptions(),
    plot: str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> LatencyReport:
    """Measures an engine, or an endpoint of OpenAI's API by its address: tokens/s of the whole call, time to first token, time
    between tokens.

    Several are measured by turns, call by call; the ratio of each to the first is in the report. endpoint, load: of addresses
    only. plot: an .svg file of the endpoints under load, with `out` its name in that directory. A report of endpoints is an
    `EndpointReport`, whose `failure` says what could not be measured. InputError for a directory that is not an engine, shapes
    that it cannot take, an address that is not that of an endpoint, or an `out` that exists; MachineError where the engine's
    runtime or GPU is absent, or the endpoint is down.
    """
    from qtk.bench.latency_run import engine_roles, measure_engines
    from qtk.bench.results import RESULT_NAME, result_directory, write_result

    targets = [engine] if isinstance(engine, str | Path) else list(engine)
    addresses = tuple(str(target) for target in targets if is_address(str(target)))
    engines = [Path(target) for target in targets if not is_address(str(target))]
    recorded: BaseModel = options
    if addresses:
        from qtk.bench.endpoint.measurement import EndpointRun, draw_load, measure_endpoints

        recorded = asked = EndpointRun(addresses=addresses, latency=options, endpoint=endpoint, load=load)

    def run(directory: Path) -> LatencyReport:
        if not addresses:
            return measure_engines(engines, options)
        report = measure_endpoints(targets, asked)
        if plot is not None:
            draw_load(report, directory / plot)
        return report

    if out is None:
        return run(Path())
    inputs = engine_roles(engines)
    with result_directory(Path(out), "latency", recorded, inputs, overwrite=overwrite) as directory:
        result = run(directory)
        write_result(result, directory / RESULT_NAME)
    return result


def divergence(
    model: str | Path,
    reference: str | Path,
    options: DivergenceOptions = DivergenceOptions(),
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> DivergenceResult:
    """Compares the predictions of a checkpoint or an engine with those of the float checkpoint `reference`: KL divergence in
    nats per token, perplexity, agreement of the most likely token, with standard errors.

    InputError for models of different vocabularies, rows longer than a context, text that is empty, or an `out` that exists.
    """
    from qtk.bench.divergence_run import measure_divergence
    from qtk.bench.results import measure_into
    from qtk.checkpoint.hub import model_directory

    inputs = {"model": model_directory(model), "reference": model_directory(reference)}

    def run() -> DivergenceResult:
        return measure_divergence(inputs["model"], inputs["reference"], options)

    return run() if out is None else measure_into(Path(out), "divergence", options, inputs, run, overwrite=overwrite)


def accuracy(
    source: str | Path,
    out: str | Path,
    options: AccuracyOptions = AccuracyOptions(),
    model_options: ModelOptions = ModelOptions(),
    *,
    endpoint: EndpointOptions = EndpointOptions(),
    overwrite: bool = False,
    resume: bool = False,
    ray: str | None = None,
) -> AccuracyResult:
    """Scores an engine or a checkpoint (a directory), a model of an endpoint (an address), or answers that were generated
    elsewhere (a JSONL file), on the suites of the options, and writes the directory `out`. model_options: how a model is asked;
    endpoint: which model of an address. ray: "auto" or the address of a Ray cluster that does the tasks.

    Programs run in a sandbox. InputError for what cannot be measured, before any work; MachineError when nothing could be scored.
    """
    from qtk.bench.accuracy.accuracy_run import Output, run_accuracy
    from qtk.bench.accuracy.ray_shards import on_ray
    from qtk.bench.accuracy.source_place import SourcePlace

    stored = not is_address(str(source)) and Path(source).is_file()
    named = SourcePlace(str(source), options.rules, stored, model_options, endpoint)
    return run_accuracy(options, named.open(), Output(Path(out), resume, overwrite), on_ray(named, ray))


def compare(before: str | Path, after: str | Path, options: CompareOptions = CompareOptions()) -> Comparison:
    """Compares two results of `accuracy`: flips both ways, paired test, verdict against the tolerance of the options.

    before, after: the directories, or their result.json. `beyond` of the comparison holds the rows that lost more than is
    tolerated. InputError for results of different tasks or rules.
    """
    from qtk.bench.accuracy.results.comparison import compare as compare_results
    from qtk.bench.accuracy.results.result import read_result

    return compare_results(read_result(Path(before)), read_result(Path(after)), options)
