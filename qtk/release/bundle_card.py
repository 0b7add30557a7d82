"""The model card of a bundle: README.md with the metadata that the Hugging Face hub reads, results as a model-index included."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtk.bench.accuracy.results.programs import ProgramsScore
from qtk.bench.accuracy.results.tables import compared_tables
from qtk.checkpoint.card import code, table_of, write_card
from qtk.checkpoint.manifest import SIGNATURE_NAME, SUMS_NAME
from qtk.engines.description import EngineDescription
from qtk.release.before_after import ordered_pairs
from qtk.release.bundle_record import BundleRecord
from qtk.release.findings import in_short
from qtk.release.material import Made, Material
from qtk.release.report import markdown
from qtk.release.sbom import SBOM_NAME
from qtk.release.starting import COMPOSE_NAME, Start
from qtk.sizes import size_text
from qtk.targets.runtimes import RUNTIMES

_LIBRARIES = {"gguf": "gguf", "modelopt": "Model Optimizer"}


@dataclass(frozen=True)
class Origin:
    """Where the model comes from. base_model: ids on the hub. metadata: what of the base's card holds for the bundle, its licence
    above all. licence_files: those that are carried."""

    base_model: tuple[str, ...]
    metadata: Mapping[str, Any]
    licence_files: tuple[str, ...]

    @property
    def licence(self) -> str:
        """As the base's card names it; empty where nothing does."""
        metadata = self.metadata
        return str(metadata.get("license_name") or metadata.get("license") or "")


@dataclass(frozen=True)
class BundleCard:
    """What the card tells. report, recipe: their files in the bundle, empty where there is none; gates: the verdict as Markdown."""

    record: BundleRecord
    made: Made
    engine: EngineDescription | None
    origin: Origin
    start: Start
    material: Material
    gates: str
    report: str
    recipe: str
    signed: bool


def write_bundle_card(directory: Path, card: BundleCard) -> None:
    """Writes README.md."""
    record, origin = card.record, card.origin
    facts = _facts(card)
    quantization = facts.get("weights")
    metadata = {
        "base_model": list(origin.base_model) if len(origin.base_model) > 1 else next(iter(origin.base_model), ""),
        "base_model_relation": ("quantized" if quantization else "merge") if origin.base_model else "",
        **origin.metadata,
        "library_name": _library(card),
        "pipeline_tag": "text-generation",
        "quantized_by": "qtk" if quantization else "",
        "tags": [*(["int4"] if quantization and quantization.startswith("4 ") else []), record.runtime],
        **_model_index(record.name, card.material),
    }
    title = record.name if record.built else f"{record.name} (prepared, not built)"
    sections = [
        ("", _opening(card)),
        ("Start", _starting(card)),
        ("What it is", table_of(list(facts.items()))),
        ("Results", _results(card)),
        ("Gates", card.gates or "No gate was judged: `qtk gate` holds a run against what must hold before a release."),
        ("Recipe", _recipe(directory, card.recipe)),
        ("Check it", _checking(card)),
        ("Licence", _licence(origin)),
    ]
    write_card(directory, title, metadata, sections)


def _opening(card: BundleCard) -> str:
    record = card.record
    links = ", ".join(f"[{name}](https://huggingface.co/{name})" for name in card.origin.base_model)
    what = "an engine" if card.engine is not None else "a checkpoint"
    runtime = RUNTIMES[record.runtime].title
    sentences = [f"{links or 'A model of its author'}, as {what} for {runtime}, bundled by qtk."]
    if not record.built:
        sentences.append(
            "**It is prepared, but not built: it does not run before the engine is built on its machine.**"
        )
    verdicts = {
        "passed": "Every gate of its release passed.",
        "failed": "**Gates of its release did not pass; see below.**",
        "not judged": "No gate of a release was judged.",
    }
    return " ".join([*sentences, verdicts[record.gate]])


def _starting(card: BundleCard) -> str:
    parts = ["In this directory:", code(*card.start.commands), *card.start.notes]
    if card.start.service is not None:
        parts.append(f"In a container (`{COMPOSE_NAME}`):")
        parts.append(code("docker compose up"))
    return "\n\n".join(parts)


def _facts(card: BundleCard) -> dict[str, str]:
    """Facts of the artefact by name."""
    engine = card.engine
    facts = {"from": card.made.name, "size": size_text(card.made.bytes), "runtime": RUNTIMES[card.record.runtime].title}
    if engine is not None:
        limits = engine.limits
        facts["GPU"] = "none, a processor" if engine.gpu == "cpu" else engine.gpu
        facts["limits"] = (
            f"{limits.max_batch} x ({limits.max_input_len} tokens in, {limits.max_output_len} out), "
            f"{limits.max_positions} positions"
        )
        facts |= engine.versions
        if (stored := engine.quantization) is not None:
            facts["weights"] = _weights(stored.bits, stored.group_size, stored.symmetric)
            facts["method"] = stored.method
        return facts
    report = card.made.manifest.notes.get("report", {})
    if report:
        facts["weights"] = _weights(report["bits"], report["group_size"], report["symmetric"])
        facts |= {"method": report["method"], "container": report["format"]}
    return facts


def _weights(bits: int, group_size: int, symmetric: bool) -> str:
    return f"{bits} bits, groups of {group_size}, {'symmetric' if symmetric else 'asymmetric'}"


def _library(card: BundleCard) -> str:
    if card.engine is not None:
        return card.record.runtime
    return _LIBRARIES.get(card.made.manifest.notes.get("report", {}).get("format", ""), "transformers")


def _results(card: BundleCard) -> str:
    material = card.material
    parts = [f"- {sentence}" for sentence in in_short(material)]
    text = ["\n".join(parts)] if parts else []
    for pair in _pairs(material):
        for table in compared_tables(pair.comparison.rows):
            text.append(f"{table.title} ({pair.before} and {pair.after}):\n\n{markdown(table)}")
    if not text:
        text.append("Nothing was measured in this run.")
    if card.report:
        text.append(f"All of it: [{card.report}]({card.report}).")
    return "\n\n".join(text)


def _pairs(material: Material) -> Sequence[Any]:
    return ordered_pairs(material.measured, material.comparisons).pairs


def _recipe(directory: Path, recipe: str) -> str:
    if not recipe:
        return ""
    content = (directory / recipe).read_text(encoding="utf-8", errors="replace").strip()
    return f"`qtk run {recipe}` repeats it:\n\n```yaml\n{content}\n```"


def _checking(card: BundleCard) -> str:
    lines = ["qtk verify .", f"sha256sum -c {SUMS_NAME}"]
    if card.signed:
        lines.insert(0, "qtk verify . --key KEY.pub")
    told = (
        f"`chain` holds the manifest of each step, so that `qtk verify` follows the model to what it was made from; `{SBOM_NAME}` "
        "lists the packages."
    )
    signed = f" `{SIGNATURE_NAME}` is a signature of the sums in OpenSSH's format." if card.signed else ""
    return f"{code(*lines)}\n\n{told}{signed}"


def _licence(origin: Origin) -> str:
    if not origin.licence:
        return (
            "The base's licence is not named in what this was made from. It binds this model too: find it before you pass the "
            "model on."
        )
    files = f" Carried: {', '.join(origin.licence_files)}." if origin.licence_files else ""
    return f"The licence of the base binds this model too: {origin.licence}.{files}"


def _model_index(name: str, material: Material) -> dict[str, Any]:
    """`model-index` of the last model that was scored and the last that was compared with the float model; empty without."""
    from huggingface_hub.repocard_data import eval_results_to_model_index

    results = list(_evaluations(material))
    return {"model-index": eval_results_to_model_index(name, results)} if results else {}


def _evaluations(material: Material) -> Iterator[Any]:
    from huggingface_hub.repocard_data import EvalResult

    for _, result in material.accuracies[-1:]:
        for score in result.scores:
            if isinstance(score, ProgramsScore):
                for rate in score.pass_at:
                    yield EvalResult(
                        task_type="text-generation",
                        dataset_type=score.suite,
                        dataset_name=f"{score.suite} ({score.name})",
                        metric_type="pass@1" if rate.k == 1 else f"pass@{rate.k}",
                        metric_value=round(100 * rate.value, 2),
                        metric_name=f"pass@{rate.k} (%)",
                    )
    for _, divergence in material.divergences[-1:]:
        for text in divergence.texts:
            for metric, value in (("kl_divergence", text.kl.mean), ("perplexity", text.perplexity)):
                yield EvalResult(
                    task_type="text-generation",
                    dataset_type=text.text,
                    dataset_name=text.text,
                    metric_type=metric,
                    metric_value=round(value, 5),
                    metric_name=metric.replace("_", " "),
                )
