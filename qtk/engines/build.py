"""Builds an engine directory from a model directory, with the backend that the options or the GPU name."""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import ValidationError

from qtk.checkpoint.hub import model_directory
from qtk.checkpoint.manifest import MANIFEST_NAME, ManifestRecorder, output_files, read_manifest
from qtk.checkpoint.staging import staged_directory
from qtk.checkpoint.writer import copy_companions
from qtk.engines.backends import engine_backend, gpu_refusals
from qtk.engines.description import (
    ENGINE_NAME,
    EngineDescription,
    MemoryTable,
    is_engine,
    read_description,
)
from qtk.engines.jobs import BuildJob, FinishJob, require_stop_tokens
from qtk.engines.options import BuildOptions, chosen_backend, not_for, resolved_limits
from qtk.errors import InputError, listing
from qtk.peak_memory import PeakMemory
from qtk.progress import Progress
from qtk.quantization.model_weights import ModelWeights
from qtk.sizes import gpu_size_text
from qtk.targets.gpu import GpuProfile, gpu_profile, is_profile_file


def build_engine(
    model_dir: Path | str, out_dir: Path | str, options: BuildOptions, *, overwrite: bool = False
) -> EngineDescription:
    """Builds the engine of `model_dir` into `out_dir`: from a float or quantized checkpoint, an id of the hub, or from a directory that
    `--prepare-only` wrote.

    Raises InputError for an unknown GPU, limits beyond the model's context, and everything that the backend cannot take (all
    reasons at once); MachineError when this machine lacks something that the build needs. Nothing is left under `out_dir`
    then.
    """
    out, model_dir = Path(out_dir), model_directory(model_dir)
    if is_engine(model_dir):
        return _finish(model_dir, out, options, overwrite=overwrite)
    gpu = gpu_profile(options.gpu)
    name = backend_name(options, gpu)
    weights = ModelWeights.open(model_dir)
    limits = resolved_limits(options, weights.spec, gpu)
    recorder = ManifestRecorder("engine", options.model_dump(mode="json"))
    recorder.add_input("model", weights.checkpoint.path, weights.checkpoint.files)
    if is_profile_file(options.gpu):
        recorder.add_input("GPU profile", Path(options.gpu), [Path(options.gpu)])
    with (
        PeakMemory() as memory,
        Progress("build-engine", weights.spec.num_layers, "blocks") as progress,
        staged_directory(out, overwrite=overwrite, inputs=(weights.checkpoint.path,)) as directory,
    ):
        job = BuildJob(
            spec=weights.spec,
            scheme=weights.scheme,
            gpu=gpu,
            limits=limits,
            options=options,
            weights=weights,
            directory=directory,
            on_block=lambda layer: progress.advance(1),
        )
        _require_buildable(name, job)
        weights.require_values()
        require_stop_tokens(weights)
        description = engine_backend(name).build(job).model_copy(update={"memory": _memory(job)})
        weights.checkpoint.require_unchanged()
        copy_companions(weights.checkpoint, directory)
        description.save(directory)
        recorder.notes["backend"] = name
        recorder.write(directory, out, memory.peak_bytes)
    return description


def backend_name(options: BuildOptions, gpu: GpuProfile) -> str:
    """The backend in force. InputError when it does not build for the GPU."""
    name = chosen_backend(options, gpu)
    if name not in gpu.backends:
        raise InputError(not_for(name, gpu))
    return name


def _require_buildable(name: str, job: BuildJob) -> None:
    """InputError, with every reason, for a model that cannot become such an engine."""
    backend, memory = engine_backend(name), gpu_refusals(name, job)
    reasons = [*backend.refusals(job), *backend.weight_refusals(job), *memory]
    if reasons:
        table = [f"{part.name}: {gpu_size_text(part.bytes)} ({part.how})" for part in job.memory.parts if memory]
        model = job.weights.checkpoint.path
        raise InputError(f"{model} cannot become a {name} engine for {job.gpu.name}:\n{listing([*reasons, *table])}")


def _memory(job: BuildJob) -> MemoryTable | None:
    """The table of an engine on one GPU; None for a processor, which has no figures, and for ranks on several GPUs."""
    return None if job.gpu.is_cpu or job.gpus > 1 else job.memory


def _finish(prepared: Path, out: Path, options: BuildOptions, *, overwrite: bool) -> EngineDescription:
    """Builds the prepared directory `prepared` into `out` with the options that it was prepared with."""
    description = read_description(prepared)
    if description.built:
        raise InputError(f"{prepared} is a built engine already, neither a model nor a directory of --prepare-only.")
    chosen = _prepared_options(prepared, options)
    recorder = ManifestRecorder("engine", chosen.model_dump(mode="json"))
    recorder.add_input("prepared", prepared, output_files(prepared))
    with PeakMemory() as memory, staged_directory(out, overwrite=overwrite, inputs=(prepared,)) as directory:
        rewritten = {ENGINE_NAME, MANIFEST_NAME, *_graph_files(description)}
        for path in prepared.iterdir():
            if path.is_file() and path.name not in rewritten:
                shutil.copyfile(path, directory / path.name)
        gpu = GpuProfile(**description.own_gpu) if description.own_gpu else gpu_profile(description.gpu)
        job = FinishJob(prepared, description, directory, gpu, chosen)
        finished = engine_backend(description.backend).finish(job)
        finished.save(directory)
        recorder.notes["backend"] = description.backend
        recorder.write(directory, out, memory.peak_bytes)
    return finished


def _graph_files(description: EngineDescription) -> set[str]:
    return {name for stage in description.stages for name in (stage.file, f"{stage.file}.data")}


def _prepared_options(prepared: Path, given: BuildOptions) -> BuildOptions:
    """The options in force: those of the preparation, with the places of this machine's tools. InputError for given options
    that contradict them."""
    try:
        before = BuildOptions.model_validate(read_manifest(prepared).options)
    except ValidationError as error:
        raise InputError(f"{prepared / MANIFEST_NAME} does not hold the options of build-engine: {error}") from None
    contradictions = [
        f"--{name.replace('_', '-')} {value} (it was prepared with {getattr(before, name)})"
        for name, value in given.model_dump(exclude_defaults=True, exclude={"edgellm_bin", "prepare_only"}).items()
        if value != getattr(before, name)
    ]
    if given.prepare_only:
        contradictions.append("--prepare-only (it is prepared already)")
    if contradictions:
        raise InputError(f"{prepared} is prepared, so these options cannot be changed:\n{listing(contradictions)}")
    return before.model_copy(update={"prepare_only": False, "edgellm_bin": given.edgellm_bin})
