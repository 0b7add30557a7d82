"""The interface of the builders of engines, and the questions that all of them answer alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from qtk.engines.description import EngineDescription
from qtk.engines.jobs import BuildJob, EngineRequest, FinishJob
from qtk.engines.memory import memory_refusals
from qtk.engines.options import BuildOptions
from qtk.targets.refusals import LinearPlan, refusals
from qtk.targets.runtimes import Runtime, engine_parts, engine_runtimes, load_part, runtime


class EngineBackend(Protocol):
    """Turns a checkpoint into what one runtime takes. Constructed from the runtime's record."""

    def refusals(self, request: EngineRequest) -> list[str]:
        """Every reason that config.json and the options tell why the model cannot become such an engine; empty when it can.

        Asked by `qtk plan` as well, so without weights. Memory is checked for all backends alike.
        """
        ...

    def weight_refusals(self, job: BuildJob) -> list[str]:
        """Every further reason, which only the stored weights tell. Asked before any work."""
        ...

    def build(self, job: BuildJob) -> EngineDescription:
        """Writes the engine's own files into job.directory and describes them.

        MachineError (exit 4) when the machine lacks what the build needs.
        """
        ...

    def finish(self, job: FinishJob) -> EngineDescription:
        """Builds what `build` only prepared. Errors as of `build`."""
        ...


def engine_backend(name: str) -> EngineBackend:
    """The builder of engines for the runtime called `name`. InputError for a runtime that qtk builds none for."""
    backend: EngineBackend = load_part(engine_parts(name).builder)(runtime(name))
    return backend


def gpu_refusals(name: str, request: EngineRequest) -> list[str]:
    """Why the GPUs cannot hold the model: more GPUs than the runtime splits a model over, or too little memory."""
    return _several_gpus(name, request) + memory_refusals(request.memory, request.gpus)


def _several_gpus(name: str, request: EngineRequest) -> list[str]:
    parts = engine_runtimes()
    if request.gpus == 1 or parts[name].several_gpus:
        return []
    splitting = ", ".join(other for other, part in parts.items() if part.several_gpus)
    return [f"--tp and --pp are for --backend {splitting}; a {name} engine runs on one device"]


def table_refusals(
    record: Runtime, request: EngineRequest, linears: Mapping[str, LinearPlan] | None = None
) -> list[str]:
    """Why the runtime does not take the quantized linears of a model, by its record. linears: in place of the request's."""
    if not request.scheme.quantized:
        return []
    linears = request.linears if linears is None else linears
    return refusals(record, request.gpu.sm, linears, tensor_parallel=request.options.tp)


def option_refusals(options: BuildOptions, dtypes: tuple[str, ...], head_bits: tuple[str, ...], why: str) -> list[str]:
    """Why a backend that computes in `dtypes` and holds heads of `head_bits` does not take these options."""
    reasons = []
    if options.dtype not in ("auto", *dtypes):
        reasons.append(f"--dtype {options.dtype}: {why} in {' or '.join(dtypes)}")
    if options.lm_head_bits not in ("auto", *head_bits):
        reasons.append(f"--lm-head-bits {options.lm_head_bits}: {why} with a head of {' or '.join(head_bits)} bits")
    return reasons
