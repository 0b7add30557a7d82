"""The calibration rows of a quantization: those that its effort reads, and those held back to compare methods on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from qtk.calibration.options import CalibrationOptions
from qtk.calibration.rows import TokenRows, calibration_rows
from qtk.errors import InputError
from qtk.models.spec import ModelSpec
from qtk.models.tokenizer import TextTokenizer
from qtk.progress import Progress, warn
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.options import QuantizeOptions

# Time grows with the rows, quality far slower: half of them lose an eighth of KL, and less than the float stream gains.
# Fewer tokens than an eighth of the columns determine less than an eighth of the Hessian: the rest is damping alone.
_COLUMNS_PER_TOKEN = 8
_FEWEST_TOKENS = 16
# Tokens a column, from which on; what they cost beside two or more, on two widths of SmolLM2 (docs/benchmarks.md).
_COSTS = ((0.5, "3 to 19 % more"), (0.25, "11 to 29 % more"), (0.0, "at least 11 % more"))
_SHARE_OF_ROWS = {"fast": 0.25, "default": 0.5, "best": 1.0}


@dataclass(frozen=True)
class CalibrationText:
    """rows: those to calibrate on (None for a method that needs none); held_back: those to compare methods on (None where
    none are compared); offered: the rows among which the effort chose."""

    rows: TokenRows | None = None
    held_back: TokenRows | None = None
    offered: int = 0

    @property
    def rows_read(self) -> int:
        return 0 if self.rows is None else len(self.rows.lengths)

    @property
    def tokens_read(self) -> int:
        return 0 if self.rows is None else self.rows.token_count


def calibration_text(
    source: ModelWeights, options: QuantizeOptions, calibration: CalibrationOptions
) -> CalibrationText:
    """The rows of a quantization. InputError for text that cannot be used."""
    if options.method == "rtn":
        return CalibrationText()
    held_back = max(2, calibration.samples // 8) if options.method == "auto" else 0
    rows = _read_rows(source, calibration, calibration.samples + held_back)
    if not held_back:
        return CalibrationText(rows_for(options.effort, rows, source.spec), None, len(rows.lengths))
    count = len(rows.lengths)
    if count < 4:
        raise InputError(
            f"{calibration.calibration} gives {count} rows; --method auto needs 4 at least, to hold some back. "
            "Use --method gptq."
        )
    offered, judged_on = rows.split(count - min(held_back, count // 4))
    return CalibrationText(rows_for(options.effort, offered, source.spec), judged_on, len(offered.lengths))


def calibration_file(options: QuantizeOptions, calibration: CalibrationOptions) -> Path | None:
    """The file that the text is read from; None where it is not a file, or not read."""
    path = Path(calibration.calibration)
    return path if options.method != "rtn" and path.is_file() else None


def rows_for(effort: str, rows: TokenRows, spec: ModelSpec) -> TokenRows:
    """The rows that an effort reads, evenly spaced: a share of them, but three tokens at least for each column of the
    widest linear, so that its Hessian does not rest on damping."""
    count = len(rows.lengths)
    needed = 3 * _widest(spec) * count / rows.token_count
    used = min(count, max(math.ceil(needed), math.ceil(_SHARE_OF_ROWS[effort] * count)))
    return rows.pick([index * count // used for index in range(used)])


def _read_rows(source: ModelWeights, options: CalibrationOptions, samples: int) -> TokenRows:
    """At most `samples` rows. InputError for text without rows, or a tokenizer with ids that the model does not have."""
    path, spec = source.checkpoint.path, source.spec
    wanted = options.model_copy(update={"samples": samples})
    with Progress("read calibration text", None):
        rows = calibration_rows(TextTokenizer(path), wanted, options.row_length(spec.max_positions))
    highest = int(rows.tokens.max())
    if highest >= spec.vocab_size:
        raise InputError(f"{path}: its tokenizer gives id {highest}, its vocabulary ends at {spec.vocab_size - 1}.")
    _judge_amount(rows, wanted, _widest(spec))
    return rows


def _judge_amount(rows: TokenRows, wanted: CalibrationOptions, widest: int) -> None:
    """Refuses too little text (InputError), and warns of less than was asked for or than the Hessian needs."""
    found = f"asked for {wanted.samples} rows, found {len(rows.lengths)} ({rows.token_count} tokens)"
    floor = max(_FEWEST_TOKENS, widest // _COLUMNS_PER_TOKEN)
    if rows.token_count < floor:
        raise InputError(
            f"{wanted.calibration} is too little to calibrate on: {found}. Linears of up to {widest} inputs need {floor} "
            f"tokens at least, and {4 * widest} to be sure. Give more text (--calibration, --samples, --seq-len), or "
            "--method rtn, which reads none."
        )
    if len(rows.lengths) < wanted.samples:
        warn(f"Calibration text: {found}.")
    if rows.token_count < widest:
        warn(
            f"{rows.token_count} calibration tokens for linears of up to {widest} inputs: what the text leaves open of their "
            f"Hessian rests on damping. On SmolLM2 so few tokens a column cost {_cost(rows.token_count / widest)} of KL divergence "
            f"(docs/benchmarks.md). {2 * widest} tokens would gain that (--samples, --seq-len), in more time."
        )


def _cost(tokens_a_column: float) -> str:
    return next(cost for least, cost in _COSTS if tokens_a_column >= least)


def _widest(spec: ModelSpec) -> int:
    return max(linear.in_features for linear in spec.linears())
