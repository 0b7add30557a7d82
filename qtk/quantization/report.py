"""What a quantization records of itself: a line for each linear, what was read back, and the report of the whole."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, field_validator

LOG_NAME = "quantization-log.jsonl"


class LayerRecord(BaseModel):
    """The log's line on one linear.

    Errors are shares of the output's energy on sample tokens of the calibration text, |W X_float - Q X|^2 / |W X_float|^2:
    `error_before` with W rounded to nearest on each group's whole range, `error_after` with the result of GPTQ or AWQ.
    Both include the effect of earlier linears on the inputs X where the float inputs are followed beside them. They are
    None without calibration. The block's errors are given where the block was tuned as a whole: the mean over tokens of
    |output - wanted|^2 / |wanted|^2. Figures that are NaN or infinite become None (JSON has neither).
    """

    model_config = ConfigDict(frozen=True)

    layer: str
    method: str
    bits: int
    group_size: int
    symmetric: bool
    error_before: float | None = None
    error_after: float | None = None
    damping: float | None = None
    seconds: float
    block_error_before: float | None = None
    block_error_after: float | None = None
    peak_memory_bytes: int = 0

    @field_validator("error_before", "error_after", "block_error_before", "block_error_after")
    @classmethod
    def _finite(cls, figure: float | None) -> float | None:
        return figure if figure is not None and math.isfinite(figure) else None

    def with_block_errors(self, before: float, after: float) -> LayerRecord:
        """The record with the errors of its block before and after tuning."""
        return LayerRecord(**{**self.model_dump(), "block_error_before": before, "block_error_after": after})


class ReadBack(BaseModel):
    """What was found in the written files.

    bits_per_weight: of the quantized linears, scales and zero points included. blocks: how many were compared with what was
    quantized, on `tokens` tokens; largest_difference: of a token after one of them, as a share of its norm. seconds: that
    reading back took. texts: the number of continuations of calibration text that were generated greedily (0: none), of
    which `loops` end in a loop. text: the first of those that do not end in a loop, if there is one (its ids where there is
    no tokenizer). repeats: more than half of the texts end in a loop, where no more than half of the float model's do.
    """

    model_config = ConfigDict(frozen=True)

    linears: int
    bits_per_weight: float
    blocks: int
    tokens: int
    largest_difference: float
    seconds: float = 0.0
    texts: int = 0
    loops: int = 0
    text: str = ""
    repeats: bool = False


class QuantizeReport(BaseModel):
    """What a quantization did. Sizes in bytes; errors as in the log (shares of output energy).

    activation_bytes, spilled_bytes: what calibration activations took in memory at most, and in files.

    held_back_kl: with --method auto, nats per token from the float model on the rows held back, by method. serve: the command
    that serves the directory; None where no runtime that qtk knows takes it. runtimes: those that do.
    """

    model_config = ConfigDict(frozen=True)

    output: str
    method: str
    format: str
    bits: int
    group_size: int
    symmetric: bool
    linears: int
    left_in_float: list[str]
    fell_back_to_rtn: list[str]
    calibration_rows: int
    calibration_rows_offered: int
    calibration_tokens: int
    compute_dtype: str
    mean_error_before: float | None
    mean_error_after: float | None
    float_bytes: int
    quantized_bytes: int
    seconds: float
    peak_memory_bytes: int
    activation_bytes: int
    spilled_bytes: int
    held_back_kl: dict[str, float]
    read_back: ReadBack
    serve: str | None = None
    runtimes: list[str] = []
