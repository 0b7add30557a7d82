"""Builds an engine directory from a model directory, with the backend that the GPU or the options name."""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import ValidationError

from qtk.checkpoint.manifest import MANIFEST_NAME, ManifestRecorder, output_files, read_manifest
from qtk.checkpoint.staging import staged_directory
from qtk.checkpoint.writer import copy_companions
from qtk.engines.backends import BACKENDS, BuildJob, FinishJob, engine_backend
from qtk.engines.description import ENGINE_NAME, EngineDescription, is_engine, read_description
from qtk.engines.memory_plan import cache_length, memory_plan
from qtk.engines.memory_table import MemoryPlan
from qtk.engines.options import BuildOptions, not_for, resolved_limits
from qtk.errors import InputError, listing
from qtk.peak_memory import PeakMemory
from qtk.progress import Progress
from qtk.quantization.model_weights import ModelWeights
from qtk.targets.gpu import GpuProfile, gpu_profile


def build_engine(
    model_dir: Path | str, out_dir: Path | str, options: BuildOptions, *, overwrite: bool = False
) -> EngineDescription:
    """Builds the engine of `model_dir` into `out_dir`: of a float or quantized checkpoint, or of what `--prepare-only` left.

    Raises InputError for an unknown GPU, limits beyond the model's context, and whatever the backend cannot take (all
    reasons at once); MachineError when the build needs what this machine lacks. Nothing is left under `out_dir` then.
    """
    out = Path(out_dir)
    if is_engine(Path(model_dir)):
        return _finish(Path(model_dir), out, options, overwrite=overwrite)
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
        staged_directory(out, overwrite=overwrite, inputs=(weights.checkpoint.path,)) as directory,
    ):
        job = BuildJob(weights, directory, gpu, limits, options, lambda layer: progress.advance(1))
        if reasons := backend.refusals(job):
            raise InputError(f"{model_dir} cannot become a {name} engine for {gpu.name}:\n{listing(reasons)}")
        description = backend.build(job).model_copy(update={"memory": _memory(job)})
        copy_companions(weights.checkpoint, directory)
        description.save(directory)
        recorder.notes["backend"] = name
        recorder.write(directory, out, memory.peak_bytes)
    return description


def backend_name(options: BuildOptions, gpu: GpuProfile) -> str:
    """The backend in force. InputError when the GPU cannot be built for by it."""
    name = gpu.default_backend if options.backend == "auto" else options.backend
    if name not in gpu.backends:
        raise InputError(not_for(name, gpu))
    if name not in BACKENDS:
        raise InputError(f"Nothing builds for {gpu.name} ({gpu.title}) here. {gpu.advice}")
    return name


def _memory(job: BuildJob) -> MemoryPlan | None:
    """The table of an engine on one GPU; None for a processor, which has no figures, and for ranks on several GPUs."""
    if job.gpu.is_cpu or job.options.tp * job.options.pp > 1:
        return None
    slots = cache_length(job.limits.max_positions)
    return memory_plan(job.weights.spec, job.weights.scheme, job.limits, job.gpu, slots)


def _finish(prepared: Path, out: Path, options: BuildOptions, *, overwrite: bool) -> EngineDescription:
    """Builds the prepared directory `prepared` into `out` with the options that it was prepared with."""
    description = read_description(prepared)
    if description.built:
        raise InputError(f"{prepared} is a built engine already, not a model and not what --prepare-only leaves.")
    chosen = _prepared_options(prepared, options)
    recorder = ManifestRecorder("engine", chosen.model_dump(mode="json"))
    recorder.add_input("prepared", prepared, output_files(prepared))
    with PeakMemory() as memory, staged_directory(out, overwrite=overwrite, inputs=(prepared,)) as directory:
        own = {ENGINE_NAME, MANIFEST_NAME, *_graph_files(description)}
        for path in prepared.iterdir():
            if path.is_file() and path.name not in own:
                shutil.copyfile(path, directory / path.name)
        job = FinishJob(prepared, description, directory, gpu_profile(description.gpu), chosen)
        finished = engine_backend(description.backend).finish(job)
        finished.save(directory)
        recorder.notes["backend"] = description.backend
        recorder.write(directory, out, memory.peak_bytes)
    return finished


def _graph_files(description: EngineDescription) -> set[str]:
    return {name for stage in description.stages for name in (stage.file, f"{stage.file}.data")}


def _prepared_options(prepared: Path, asked: BuildOptions) -> BuildOptions:
    """The options in force: those of the preparation, which no other may contradict, and where the tools are here."""
    try:
        before = BuildOptions.model_validate(read_manifest(prepared).options)
    except ValidationError as error:
        raise InputError(f"{prepared / MANIFEST_NAME} holds no options of build-engine: {error}") from None
    other = [
        f"--{name.replace('_', '-')} {value} (it was prepared with {getattr(before, name)})"
        for name, value in asked.model_dump(exclude_defaults=True, exclude={"edgellm_bin", "prepare_only"}).items()
        if value != getattr(before, name)
    ]
    if asked.prepare_only:
        other.append("--prepare-only (it is prepared)")
    if other:
        raise InputError(f"{prepared} was prepared already, so these cannot be chosen any more:\n{listing(other)}")
    return before.model_copy(update={"prepare_only": False, "edgellm_bin": asked.edgellm_bin})
