"""What a run leaves untested, in sentences: nothing that is not named here was forgotten by the report."""

from __future__ import annotations

from collections.abc import Iterator

from qtk.release.before_after import Order
from qtk.release.headline import released_engine
from qtk.release.material import BuiltEngine, Material
from qtk.release.verdict import ReleaseVerdict
from qtk.wording import counted


def untested(material: Material, order: Order, verdict: ReleaseVerdict) -> tuple[str, ...]:
    """Each thing that a reader could take for tested and that was not."""
    return (
        *_gates(verdict),
        *_accuracy(material, order),
        *_divergence(material),
        *_engine(material),
        *_quantization(material),
    )


def _gates(verdict: ReleaseVerdict) -> Iterator[str]:
    if verdict.word == "no gates":
        yield "No gate was held against these figures: `gates:` in a recipe, or `qtk gate RUN --gates FILE`."
    for gate in verdict.gates:
        if gate.verdict in ("not measured", "too little evidence"):
            yield f"Gate {gate.name}: {gate.verdict}{f' ({gate.why})' if gate.why else ''}."


def _accuracy(material: Material, order: Order) -> Iterator[str]:
    if not material.accuracies:
        yield "No accuracy: no suite was run (`qtk bench accuracy`)."
    elif not order.pairs:
        yield "No change of accuracy: the float model and the released one were not scored on the same tasks."
    for sentence in order.left_out:
        yield f"Not compared: {sentence}."
    for made, result in material.accuracies:
        for name, reason in result.skipped.items():
            yield f"Not scored in {made.name}: {name}: {reason}."
    for pair in order.pairs:
        for row in pair.comparison.rows:
            if row.whole is not None and row.tasks < row.whole:
                yield f"{row.label}: {row.counted} tasks were scored in {pair.after}."


def _divergence(material: Material) -> Iterator[str]:
    measured = {result.model.rsplit("/", 1)[-1] for _, result in material.divergences}
    engine = released_engine(material)
    if not measured:
        yield "No divergence from the float model (`qtk bench divergence`)."
    elif engine is not None and engine.made.name not in measured:
        others = ", ".join(sorted(measured))
        yield (
            f"No divergence of {engine.made.name} itself, only of {others}: what the engine's arithmetic adds is not known."
        )


def _engine(material: Material) -> Iterator[str]:
    engine = released_engine(material)
    if engine is None:
        yield "No engine: nothing here was run by the runtime that serves it."
        return
    yield from _run_of(material, engine)
    if engine.description.memory is not None:
        yield f"The memory of {engine.made.name} is counted part by part, not measured."


def _run_of(material: Material, engine: BuiltEngine) -> Iterator[str]:
    name, description = engine.made.name, engine.description
    if not description.built:
        yield f"{name} is prepared, but not built: it was never run."
    elif name not in {timed.engine for timed in material.timed_engines}:
        yield f"No latency of {name} was measured (`qtk bench latency`)."
    accepted = {acceptance.engine: acceptance for acceptance in material.acceptances}
    if description.gpu != "cpu" and name not in accepted:
        yield f"{name} was not accepted on its GPU, {description.gpu} (`qtk accept`)."
    for acceptance in material.acceptances:
        for check, reason in acceptance.checks_not_run.items():
            yield f"Check of {acceptance.engine} not run: {check}: {reason}."
        if acceptance.shapes_not_run:
            yield f"Shapes of {acceptance.engine} not run: {', '.join(acceptance.shapes_not_run)}."


def _quantization(material: Material) -> Iterator[str]:
    for model in material.quantized:
        if not any(record.error_after is not None for record in model.layers):
            yield f"No error by layer of {model.made.name}: it was quantized without calibration."
        fallen = model.facts.get("fell_back_to_rtn", [])
        if fallen:
            yield f"{counted(len(fallen), 'linear')} of {model.made.name} were rounded to nearest, because the method failed on them."
