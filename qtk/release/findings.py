"""What was found, gathered once: the Markdown report and the page are two ways to show it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qtk
from qtk.bench.accuracy.results.tables import ResultTable, compared_tables, named_score_tables
from qtk.bench.latency_result import SpeedRatio
from qtk.release.before_after import Order
from qtk.release.chain import source_names
from qtk.release.headline import Headline, headlines
from qtk.release.layer_errors import LayerErrors, layer_errors
from qtk.release.material import Made, Material
from qtk.release.numbers import figure
from qtk.release.untested import untested
from qtk.release.verdict import ReleaseVerdict


@dataclass(frozen=True)
class Remark:
    """A warning, and the directory whose command gave it."""

    name: str
    text: str


@dataclass(frozen=True)
class CommandSteps:
    """A command line, and the directories that it made."""

    line: str
    steps: tuple[str, ...]


@dataclass(frozen=True)
class MachineSteps:
    """A machine with its packages, and the directories that were made on it."""

    machine: Mapping[str, Any]
    packages: Mapping[str, str]
    steps: tuple[str, ...]


@dataclass(frozen=True)
class PairTables:
    """Two accuracy results side by side: what differs between them, what is published, and a table for each kind of score."""

    before: str
    after: str
    tables: tuple[ResultTable, ...]
    differences: tuple[str, ...]
    published: str | None
    flips: tuple[tuple[str, Mapping[str, Sequence[str]]], ...]


@dataclass(frozen=True)
class Findings:
    """Everything that a report shows. sources: what each directory was made from. errors: by the name of the quantized model.
    scores: a table for each kind."""

    title: str
    version: str
    material: Material
    order: Order
    verdict: ReleaseVerdict
    headlines: tuple[Headline, ...]
    in_short: tuple[str, ...]
    errors: Mapping[str, LayerErrors]
    scores: tuple[ResultTable, ...]
    pairs: tuple[PairTables, ...]
    ratios: tuple[SpeedRatio, ...]
    warnings: tuple[Remark, ...]
    commands: tuple[CommandSteps, ...]
    machines: tuple[MachineSteps, ...]
    sources: Mapping[str, Sequence[str]]
    untested: tuple[str, ...]


def findings(title: str, material: Material, order: Order, verdict: ReleaseVerdict) -> Findings:
    """Draws everything from what was read."""
    return Findings(
        title=title,
        version=qtk.__version__,
        material=material,
        order=order,
        verdict=verdict,
        headlines=headlines(material, order),
        in_short=tuple(in_short(material)),
        errors={model.made.name: layer_errors(model.layers) for model in material.quantized},
        scores=tuple(named_score_tables((made.name, result.scores) for made, result in material.accuracies)),
        pairs=tuple(_pair_tables(order)),
        ratios=tuple(material.speed_ratios),
        warnings=tuple(Remark(made.name, text) for made in material.made for text in made.manifest.warnings),
        commands=_commands(material.made),
        machines=_machines(material.made),
        sources=_sources(material.made),
        untested=untested(material, order, verdict),
    )


def in_short(material: Material) -> list[str]:
    """The two or three sentences that a reader wants first. Only what was measured is mentioned."""
    sentences = []
    for model in material.quantized:
        facts = model.facts
        share = facts["quantized_bytes"] / facts["float_bytes"]
        sentences.append(
            f"{model.made.name}: {facts['bits']} bits by {facts['method']}, weights {share:.0%} of the float model's."
        )
    sentences += [_ratio_in_words(ratio) for ratio in material.speed_ratios]
    for _, result in material.divergences:
        kl, top1 = result.pooled.kl, result.pooled.top1_agreement
        sentences.append(
            f"{Path(result.model).name} against the float model: KL {figure(kl.mean)} ± {figure(kl.standard_error, 2)} "
            f"nats per token, same most likely token {top1.mean:.1%}, perplexity {figure(result.pooled.perplexity, 4)} "
            f"instead of {figure(result.pooled.perplexity_reference, 4)}."
        )
    return sentences


def _ratio_in_words(ratio: SpeedRatio) -> str:
    error = "" if ratio.standard_error is None else f" ± {figure(ratio.standard_error, 2)}"
    pairs = f" ({ratio.pairs} pair{'' if ratio.pairs == 1 else 's'} of calls)" if ratio.pairs else ""
    doubt = f" In doubt: {ratio.in_doubt}." if ratio.in_doubt else ""
    return f"{ratio.engine} at {ratio.shape}: {figure(ratio.ratio)}{error} times the tokens/s of {ratio.baseline}{pairs}.{doubt}"


def _pair_tables(order: Order) -> list[PairTables]:
    return [
        PairTables(
            before=pair.before,
            after=pair.after,
            tables=tuple(compared_tables(pair.comparison.rows)),
            differences=tuple(pair.comparison.differences),
            published=pair.comparison.published,
            flips=tuple((row.label, row.flips()) for row in pair.comparison.rows if any(row.flips().values())),
        )
        for pair in order.pairs
    ]


def _commands(made: Sequence[Made]) -> tuple[CommandSteps, ...]:
    """The distinct commands in the order in which they first came."""
    steps: dict[str, list[str]] = {}
    for output in made:
        steps.setdefault(shlex.join(output.manifest.command), []).append(output.name)
    return tuple(CommandSteps(line, tuple(names)) for line, names in steps.items())


def _machines(made: Sequence[Made]) -> tuple[MachineSteps, ...]:
    """The distinct machines and sets of packages that the steps ran on."""
    found: dict[str, list[Made]] = {}
    for output in made:
        key = json.dumps([output.manifest.machine, output.manifest.packages], sort_keys=True)
        found.setdefault(key, []).append(output)
    return tuple(
        MachineSteps(same[0].manifest.machine, same[0].manifest.packages, tuple(output.name for output in same))
        for same in found.values()
    )


def _sources(made: Sequence[Made]) -> dict[str, list[str]]:
    """What each directory was made from, by the digests of manifests."""
    known = {other.sha256: other.name for other in made}
    return {output.name: source_names(output.path, output.manifest, known) for output in made}
