"""The error of each quantized linear: by kind of linear, by block, and those that lost most."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qtk.quantization.report import LayerRecord

_WORST = 10
Points = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class KindError:
    """The linears of one kind over the blocks: mean error of plain rounding (None where it was not taken), mean and largest
    error of what was written."""

    kind: str
    count: int
    rounded: float | None
    quantized: float
    largest: float
    points_rounded: Points
    points_quantized: Points


@dataclass(frozen=True)
class LayerErrors:
    """Shares of the output's energy that were lost, of one quantized model."""

    kinds: tuple[KindError, ...]
    worst: tuple[LayerRecord, ...]


def layer_errors(records: Sequence[LayerRecord]) -> LayerErrors:
    """Sums up a log. Nothing in it where no error was taken (without calibration)."""
    known = [record for record in records if record.error_after is not None]
    kinds = dict.fromkeys(_kind(record) for record in known)
    return LayerErrors(
        tuple(_kind_error(kind, [record for record in known if _kind(record) == kind]) for kind in kinds),
        tuple(sorted(known, key=lambda record: -(record.error_after or 0.0))[:_WORST]),
    )


def _kind(record: LayerRecord) -> str:
    return record.layer.rsplit(".", 1)[-1]


def _kind_error(kind: str, records: Sequence[LayerRecord]) -> KindError:
    rounded = [record.error_before for record in records if record.error_before is not None]
    quantized = [record.error_after for record in records if record.error_after is not None]
    return KindError(
        kind=kind,
        count=len(records),
        rounded=sum(rounded) / len(rounded) if rounded else None,
        quantized=sum(quantized) / len(quantized),
        largest=max(quantized),
        points_rounded=_points((record.layer, record.error_before) for record in records),
        points_quantized=_points((record.layer, record.error_after) for record in records),
    )


def _points(errors: Iterable[tuple[str, float | None]]) -> Points:
    """(block, error) of what lies in a block, in the order of the blocks; an error of zero has no place on a log scale."""
    found = [(_block(layer), error) for layer, error in errors if error]
    return tuple(sorted((block, error) for block, error in found if block is not None))


def _block(layer: str) -> int | None:
    return next((int(part) for part in layer.split(".") if part.isdigit()), None)
