"""Quantizes a model directory into another: what can be refused is refused before any work, what was written is read back."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from pydantic import BaseModel, ConfigDict

import qtk
from qtk.calibration.options import CalibrationOptions
from qtk.calibration.rows import TokenRows, calibration_rows
from qtk.checkpoint.manifest import ManifestRecorder
from qtk.checkpoint.reader import Checkpoint
from qtk.checkpoint.staging import staged_directory
from qtk.errors import InputError, MachineError, listing
from qtk.machine import PeakMemory, keep_freed_memory, limit_threads
from qtk.models.registry import model_spec
from qtk.models.spec import ModelSpec
from qtk.models.tokenizer import TextTokenizer
from qtk.progress import note
from qtk.quantization.formats.base import Format, QuantizationScheme
from qtk.quantization.formats.registry import checkpoint_format
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.options import QuantizeOptions
from qtk.quantization.read_back import ReadBack, read_back
from qtk.quantization.resume import ResumeState
from qtk.quantization.run import WORK, Outcome, QuantizationRun, kept_tensors
from qtk.quantization.scheme import resolve_scheme
from qtk.quantization.target_settings import for_target, require_target

LOG_NAME = "quantization-log.jsonl"
# Time grows with the rows, quality far slower: half of them lose an eighth of KL, and less than the float stream gains.
_SHARE_OF_ROWS = {"fast": 0.25, "default": 0.5, "best": 1.0}


class QuantizeReport(BaseModel):
    """What a quantization did. Sizes in bytes; errors as in the log (shares of output energy)."""

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
    spilled_bytes: int
    # With --method auto: nats per token from the float model on the rows held back, by method.
    held_back_kl: dict[str, float]
    read_back: ReadBack


def quantize_model(
    model: Path,
    out: Path,
    options: QuantizeOptions,
    calibration: CalibrationOptions,
    *,
    overwrite: bool = False,
    resume: bool = False,
) -> QuantizeReport:
    """Quantizes the model directory `model` into the new directory `out`.

    A run that is stopped leaves `out`.partial behind, from which `resume` goes on after the last finished block, to the
    same weights bit for bit.

    Raises InputError before any work for an unknown architecture, a model that is quantized already, settings that do
    not fit (all offenders listed) or calibration text that cannot be used; MachineError for a disk without room.
    """
    checkpoint = Checkpoint(model)
    if checkpoint.config.get("quantization_config"):
        raise InputError(f"{model} is quantized already. Quantize the float model that it was made from.")
    spec = model_spec(checkpoint)
    checkpoint.require_shapes(spec.all_tensors())
    options = for_target(options, spec)
    container = checkpoint_format(options.format)
    if reasons := container.checkpoint_refusals(checkpoint):
        raise InputError(f"{model} cannot be stored as {container.name}:\n{listing(reasons)}")
    scheme = resolve_scheme(spec, options, container)
    require_target(options, spec, scheme)
    device = _device(options.device)
    limit_threads(options.threads)
    keep_freed_memory()
    recorder = ManifestRecorder("quantized-model", {**options.model_dump(), **calibration.model_dump()})
    recorder.add_input("model", model, checkpoint.files)
    rows, judged_on, offered = None, None, 0
    if options.method != "rtn":
        held_back = _held_back(calibration) if options.method == "auto" else 0
        rows, judged_on = _calibration(checkpoint, spec, calibration, held_back, recorder)
        offered, rows = len(rows.lengths), _rows_for(options.effort, rows, spec)
    staged = staged_directory(out, overwrite=overwrite, resumable=True, fresh=not resume)
    with staged as work, PeakMemory() as memory, torch.no_grad():
        start = time.monotonic()
        runs = _Runs(checkpoint, spec, scheme, container, options, rows, judged_on, device, memory)
        outcome = runs.better(work) if options.method == "auto" else runs.run(options.method, work)
        check = read_back(work, ModelWeights(checkpoint, spec), rows, limit_bytes=psutil.virtual_memory().total // 8)
        (work / LOG_NAME).write_text("".join(json.dumps(line) + "\n" for line in outcome.log), encoding="utf-8")
        facts = {
            "output": str(out),
            "calibration_rows_offered": offered,
            "format": container.name,
            "float_bytes": sum(checkpoint.info(name).nbytes for name in kept_tensors(checkpoint, spec)),
            "seconds": round(time.monotonic() - start, 2),
            "peak_memory_bytes": memory.peak_bytes,
            "held_back_kl": runs.held_back_kl,
        }
        report = _report(work, scheme, rows, outcome, check, facts)
        recorder.notes |= {"report": report.model_dump(), "resolved_group_size": scheme.default.group_size}
        recorder.write(work, out, report.peak_memory_bytes)
    return report


def _deciding_facts(checkpoint: Checkpoint, options: QuantizeOptions, rows: TokenRows | None) -> dict[str, Any]:
    """What decides the weights to the last bit: what a resumed run must have in common with the one that was stopped."""
    tokens = b"" if rows is None else rows.tokens.numpy().tobytes() + rows.lengths.numpy().tobytes()
    return {
        "options": options.model_dump(),
        "model": [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in checkpoint.files],
        "tokens": hashlib.sha256(tokens).hexdigest(),
        "threads": torch.get_num_threads(),
        "versions": [qtk.__version__, torch.__version__],
    }


def _held_back(calibration: CalibrationOptions) -> int:
    """Rows beside those asked for on which --method auto compares the methods."""
    return max(2, calibration.samples // 8)


def _calibration(
    checkpoint: Checkpoint, spec: ModelSpec, options: CalibrationOptions, held_back: int, recorder: ManifestRecorder
) -> tuple[TokenRows, TokenRows | None]:
    """The rows to calibrate on, and those that are held back from it (None for 0)."""
    wanted = options.model_copy(update={"samples": options.samples + held_back})
    rows = calibration_rows(TextTokenizer(checkpoint.path), wanted, options.row_length(spec.max_positions))
    if int(rows.tokens.max()) >= spec.vocab_size:
        raise InputError(
            f"{checkpoint.path}: its tokenizer gives id {int(rows.tokens.max())}, its vocabulary ends at {spec.vocab_size - 1}."
        )
    widest = max(linear.in_features for linear in spec.linears())
    if rows.token_count < widest:
        note(
            f"WARNING: {rows.token_count} calibration tokens for linears of up to {widest} inputs: their Hessian is singular "
            f"and rests on damping. Use at least {4 * widest} tokens (--samples, --seq-len)."
        )
    if Path(options.calibration).is_file():
        recorder.add_input("calibration", Path(options.calibration), [Path(options.calibration)])
    if not held_back:
        return rows, None
    count = len(rows.lengths)
    if count < 4:
        raise InputError(
            f"{options.calibration} gives {count} rows; --method auto needs 4 at least, to hold some back. Use --method gptq."
        )
    return rows.split(count - min(held_back, count // 4))


def _rows_for(effort: str, rows: TokenRows, spec: ModelSpec) -> TokenRows:
    """The rows that an effort reads, evenly spaced: a share of them, but three tokens at least for each column of the
    widest linear, so that its Hessian does not rest on damping."""
    count = len(rows.lengths)
    needed = 3 * max(linear.in_features for linear in spec.linears()) * count / rows.token_count
    used = min(count, max(math.ceil(needed), math.ceil(_SHARE_OF_ROWS[effort] * count)))
    return rows.pick([index * count // used for index in range(used)])


class _Runs:
    """Runs of single methods with everything else alike."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: ModelSpec,
        scheme: QuantizationScheme,
        container: Format,
        options: QuantizeOptions,
        rows: TokenRows | None,
        judged_on: TokenRows | None,
        device: torch.device,
        memory: PeakMemory,
    ) -> None:
        self.checkpoint, self.spec, self.scheme, self.container = checkpoint, spec, scheme, container
        self.options, self.rows, self.judged_on, self.device, self.memory = options, rows, judged_on, device, memory
        self.facts = _deciding_facts(checkpoint, options, rows)
        self.held_back_kl: dict[str, float] = {}

    def run(self, method: str, work: Path) -> Outcome:
        """One method into the directory `work`; a state left there is taken up."""
        scheme = replace(self.scheme, method=method)
        state = ResumeState(work / WORK, {**self.facts, "method": method})
        try:
            return QuantizationRun(
                self.checkpoint,
                self.spec,
                scheme,
                self.container,
                self.options,
                self.rows,
                self.judged_on,
                self.device,
                work,
                state,
            ).quantize(self.memory)
        except BaseException:
            if state.blocks == 0:  # nothing worth resuming
                shutil.rmtree(work, ignore_errors=True)
            raise

    def better(self, work: Path) -> Outcome:
        """GPTQ and AWQ, each in a directory of its own; the one nearer to the float model on the rows held back is moved
        into `work`."""
        outcomes: dict[str, Outcome] = {}
        for method in ("gptq", "awq"):
            place, finished = work / method, work / f"{method}.json"
            if finished.is_file():  # by the run that this one resumes
                outcomes[method] = Outcome.model_validate_json(finished.read_bytes())
                continue
            place.mkdir(exist_ok=True)
            outcomes[method] = self.run(method, place)
            finished.write_text(outcomes[method].model_dump_json(), encoding="utf-8")
        self.held_back_kl = {m: o.held_back_kl for m, o in outcomes.items() if o.held_back_kl is not None}
        best = min(self.held_back_kl, key=lambda method: self.held_back_kl[method])
        for path in (work / best).iterdir():
            path.rename(work / path.name)
        for method in outcomes:
            shutil.rmtree(work / method)
            (work / f"{method}.json").unlink()
        return outcomes[best]


def _report(
    work: Path,
    scheme: QuantizationScheme,
    rows: TokenRows | None,
    outcome: Outcome,
    check: ReadBack,
    facts: dict[str, Any],
) -> QuantizeReport:
    def mean(key: str) -> float | None:
        values = [line[key] for line in outcome.log if line[key] is not None]
        return sum(values) / len(values) if values else None

    with closing(Checkpoint(work)) as written:
        quantized_bytes = sum(written.info(name).nbytes for name in written.names)
    return QuantizeReport(
        method=outcome.method,
        bits=scheme.default.bits,
        group_size=scheme.default.group_size,
        symmetric=scheme.default.symmetric,
        linears=len(outcome.log),
        left_in_float=[name for name, s in scheme.modules.items() if s.bits == 16],
        fell_back_to_rtn=[line["layer"] for line in outcome.log if line["method"] != outcome.method],
        calibration_rows=0 if rows is None else rows.tokens.shape[0],
        calibration_tokens=0 if rows is None else rows.token_count,
        compute_dtype=outcome.compute_dtype,
        mean_error_before=mean("error_before"),
        mean_error_after=mean("error_after"),
        quantized_bytes=quantized_bytes,
        spilled_bytes=outcome.spilled_bytes,
        read_back=check,
        **facts,
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise MachineError(f"--device {name}: torch sees no GPU on this machine. Use --device cpu.")
    return torch.device(name)
