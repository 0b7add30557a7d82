"""The model card of a quantized checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qtk.checkpoint.card import base_sentence, carry_cards, code, read_base, table_of, write_card
from qtk.checkpoint.publishing import publishable
from qtk.checkpoint.reader import Checkpoint
from qtk.quantization.report import QuantizeReport
from qtk.targets.serving import StoredAs, serving_line, transformers_sentence

_LIBRARY = {"gguf": "gguf", "modelopt": "Model Optimizer"}  # by container; transformers loads the others


@dataclass(frozen=True)
class QuantizedCard:
    """What a card tells of a quantized checkpoint. name: of the finished directory. calibration: the text it was calibrated
    on; a file is called by its name only. gpu, backend: those it was quantized for."""

    name: str
    report: QuantizeReport
    stored: StoredAs
    calibration: str
    gpu: str | None
    backend: str


def write_quantized_card(directory: Path, source: Checkpoint, card: QuantizedCard) -> None:
    """Writes README.md, and carries the base's card beside it."""
    report = card.report
    base = read_base(source)
    carried = carry_cards(base, directory)
    scheme = f"w{report.bits}a16"
    metadata = {
        "base_model": list(base.identity) if len(base.identity) > 1 else next(iter(base.identity), ""),
        "base_model_relation": "quantized" if base.identity else "",
        **base.carried,
        "library_name": _LIBRARY.get(report.format, "transformers"),
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys((f"int{report.bits}", scheme, report.method, report.format))),
    }
    line = serving_line(card.stored, card.name, gpu=card.gpu, backend=card.backend)
    titles = ", ".join(report.runtimes)
    served = f"{code(line)}\n\n" if line else ""
    sections = [
        ("", f"{base_sentence(base)}, quantized by qtk to {report.bits} bits."),
        (
            "Use",
            f"{served}Loaded by: {titles or 'none of the runtimes that qtk knows'}. {transformers_sentence(report.format)}",
        ),
        ("Quantization", table_of(_facts(report, card.calibration))),
        ("Figures", _figures(report, card.name)),
        ("The base's card", f"Carried as it stands: {', '.join(carried)}." if carried else ""),
    ]
    write_card(directory, card.name, metadata, sections)


def _facts(report: QuantizeReport, calibration: str) -> list[tuple[str, object]]:
    symmetry = "symmetric" if report.symmetric else "asymmetric"
    place = Path(calibration).name if Path(calibration).is_file() else calibration
    rows: list[tuple[str, object]] = [
        ("method", report.method),
        ("weights", f"{report.bits} bits, groups of {report.group_size}, {symmetry}; activations stay in 16 bits"),
        ("container", report.format),
        ("linears", f"{report.linears} quantized, {len(report.left_in_float)} left in float"),
        ("size", f"{report.float_bytes / 1e6:.1f} MB -> {report.quantized_bytes / 1e6:.1f} MB"),
    ]
    if report.calibration_tokens:
        text = f"{publishable(place)}: {report.calibration_rows} rows, {report.calibration_tokens} tokens"
        rows.append(("calibration", text))
    return rows


def _figures(report: QuantizeReport, name: str) -> str:
    rows: list[tuple[str, object]] = []
    if report.mean_error_before is not None and report.mean_error_after is not None:
        change = f"{report.mean_error_after:.2e} (rounded to nearest: {report.mean_error_before:.2e})"
        rows.append(("mean output error, on the calibration text", change))
    rows += [
        (f"KL of {method} on rows held back, nats per token", f"{kl:.4f}") for method, kl in report.held_back_kl.items()
    ]
    measured = f"{table_of(rows)}\n\n" if rows else ""
    commands = code(f"qtk bench divergence {name} --reference BASE -o divergence", "qtk report . -o report")
    return (
        f"{measured}What was lost against the base is not measured while quantizing. These lines measure it; put their figures "
        f"here (no manifest holds this file to its content):\n\n{commands}"
    )
