"""Builds an engine directory from a model directory, with the backend that the GPU or the options name."""

from __future__ import annotations

from pathlib import Path

from qtk.checkpoint.manifest import ManifestRecorder
from qtk.checkpoint.staging import staged_directory
from qtk.checkpoint.writer import copy_companions
from qtk.engines.backends import BACKENDS, BuildJob, engine_backend
from qtk.engines.description import EngineDescription
from qtk.engines.options import BuildOptions, resolved_limits
from qtk.errors import InputError, listing
from qtk.machine import PeakMemory
from qtk.progress import Progress
from qtk.quantization.model_weights import ModelWeights
from qtk.targets.gpu import GpuProfile, gpu_profile


def build_engine(
    model_dir: Path | str, out_dir: Path | str, options: BuildOptions, *, overwrite: bool = False
) -> EngineDescription:
    """Builds the engine of `model_dir`, a float or quantized checkpoint, into `out_dir`.

    Raises InputError for an unknown GPU, limits beyond the model's context, and whatever the backend cannot take (all
    reasons at once); MachineError when the build needs what this machine lacks. Nothing is left under `out_dir` then.
    """
    out = Path(out_dir)
    gpu = gpu_profile(options.gpu)
    name = backend_name(options, gpu)
    if options.tp * options.pp > 1 and name != "tensorrt-llm":
        raise InputError(f"--tp and --pp are for --backend tensorrt-llm; a {name} engine runs on one device.")
    backend = engine_backend(name)
    weights = ModelWeights.open(model_dir)
    limits = resolved_limits(options, weights.spec, gpu)
    recorder = ManifestRecorder("engine", options.model_dump(mode="json"))
    recorder.add_input("model", weights.checkpoint.path, weights.checkpoint.files)
    layers = weights.spec.num_layers
    with (
        PeakMemory() as memory,
        Progress("build-engine", layers, "block") as progress,
        staged_directory(out, overwrite=overwrite) as directory,
    ):
        job = BuildJob(weights, directory, gpu, limits, options, lambda layer: progress.advance(1))
        if reasons := backend.refusals(job):
            raise InputError(f"{model_dir} cannot become a {name} engine for {gpu.name}:\n{listing(reasons)}")
        description = backend.build(job)
        copy_companions(weights.checkpoint, directory)
        description.save(directory)
        recorder.notes["backend"] = name
        recorder.write(directory, out, memory.peak_bytes)
    return description


def backend_name(options: BuildOptions, gpu: GpuProfile) -> str:
    """The backend in force. InputError when the GPU cannot be built for by it."""
    name = gpu.default_backend if options.backend == "auto" else options.backend
    if name not in gpu.backends:
        raise InputError(
            f"Backend {name} does not build for {gpu.name}. What does: {', '.join(gpu.backends)}. {gpu.advice}".strip()
        )
    if name not in BACKENDS:
        raise InputError(f"Nothing builds for {gpu.name} ({gpu.title}) here. {gpu.advice}")
    return name
