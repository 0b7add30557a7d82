"""`qtk finetune`: from a base and data to an adapter directory, which stands when the training is over."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtk.adapters.trained_base import TrainedBase
from qtk.checkpoint.begun import BegunWork
from qtk.checkpoint.hub import model_directory
from qtk.checkpoint.manifest import ManifestRecorder, file_digest
from qtk.checkpoint.staging import Resumption, partial_path, staged_directory
from qtk.errors import InputError, MachineError
from qtk.finetuning.options import FinetuneOptions
from qtk.finetuning.ranks import processes, rank
from qtk.finetuning.record import FinetuneReport, TaskResult, write_record
from qtk.finetuning.unfinished import BEGUN_NAME, WORK, unfinished_training
from qtk.install_hints import install_hint
from qtk.machine import limit_threads, package_versions, processor_name
from qtk.models.tokenizer import TextTokenizer
from qtk.peak_memory import PeakMemory
from qtk.progress import silence_progress, warn

if TYPE_CHECKING:
    import torch

    from qtk.finetuning.checkpoints import TrainingState
    from qtk.finetuning.evaluation import ModelOnRanks
    from qtk.finetuning.training_data import TrainingData
    from qtk.quantization.model_weights import ModelWeights

_NEEDED = ("accelerate", "peft", "transformers")


def require_trainer() -> None:
    """MachineError, with the pip line, where a package that trains is missing."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MachineError(
            f"Training needs the {'package' if len(missing) == 1 else 'packages'} {', '.join(missing)}: "
            f"{install_hint('finetune', *missing)}"
        )


def finetune(
    base: Path, out: Path, options: FinetuneOptions, *, overwrite: bool = False, resume: bool = False
) -> FinetuneReport:
    """Trains an adapter for `base`, a directory or an id of the hub, and writes it into the new directory `out`.

    In several processes under torchrun or accelerate's launcher, every one calls this, and the first writes.

    A training that is stopped leaves `out`.partial, where `resume` goes on from the last checkpoint, bit for bit.
    InputError, before any work, for bad rows (all of them named), options that do not fit the model, and a base of no use;
    for a loss that is not a number. MachineError for missing packages.
    """
    require_trainer()
    from qtk.finetuning.frozen_base import describe_base, open_base
    from qtk.finetuning.lora_model import require_targets
    from qtk.finetuning.training_data import training_data
    from qtk.quantization.compute import compute_device, compute_dtype

    if rank():
        silence_progress()
    if options.shard and processes() == 1:
        raise InputError("--shard spreads the base over several processes, and this is one: start it with torchrun.")
    recorder = ManifestRecorder("trained-adapter", options.model_dump(mode="json"), options.threads)
    base = model_directory(base)
    device = compute_device(options.device)
    threads = limit_threads(options.threads)
    weights = open_base(base, nf4=options.qlora)
    require_targets(weights.spec, options)
    data = training_data(TextTokenizer(base), options, weights.spec.max_positions)
    described = describe_base(weights, nf4=options.qlora)
    recorder.add_input("base", base, weights.checkpoint.files)
    for source, files in zip(options.data, data.files.values(), strict=True):
        if files:
            recorder.add_input("data", Path(source), files)
    facts = _deciding_facts(options, data, described, threads)
    inputs = [base, *(path for files in data.files.values() for path in files)]
    with (
        _staged(out, overwrite, Resumption(resume, facts, unfinished_training), inputs) as partial,
        PeakMemory() as memory,
    ):
        dtype = _begin(partial, facts, lambda: str(compute_dtype(device)).removeprefix("torch."))
        training = _Training(weights, data, options, described, dtype, device)
        report = training.run(partial, out).model_copy(update={"peak_memory_bytes": memory.peak_bytes})
        if rank() == 0:
            write_record(report, partial)
            recorder.notes |= {"loss_before": report.loss_before, "loss": report.loss, "best_step": report.best_step}
            recorder.digest(partial, leave_out=(partial / WORK,))
            shutil.rmtree(partial / WORK)
            recorder.write(partial, out, memory.peak_bytes)
    if report.loss is not None and report.loss_before is not None and report.loss > report.loss_before:
        warn(
            f"The held-back loss is {report.loss:.3f} with the adapter and {report.loss_before:.3f} without it: it learnt "
            "nothing that carries over."
        )
    return report


def _staged(out: Path, overwrite: bool, resumption: Resumption, inputs: list[Path]) -> AbstractContextManager[Path]:
    if rank() == 0:
        return staged_directory(out, overwrite=overwrite, resumption=resumption, inputs=inputs)
    return contextlib.nullcontext(partial_path(out))


def _deciding_facts(options: FinetuneOptions, data: TrainingData, base: TrainedBase, threads: int) -> dict[str, Any]:
    """Whatever decides the adapter to the last bit, by the name that a refusal calls it."""
    return {
        "base": base.model_dump(),
        "data": [[file_digest(path).sha256 for path in files] for files in data.files.values()],
        "set of options": options.model_dump(mode="json", exclude={"data", "threads"}),
        "number of threads": threads,
        "number of processes": processes(),
        "processor": processor_name(),
        "version of torch": package_versions("torch", *_NEEDED),
    }


def _begin(partial: Path, facts: dict[str, Any], dtype: Any) -> torch.dtype:
    """The dtype to compute in: a fresh training finds it by timing, a resumed one takes what it began with."""
    import torch

    if rank():
        # The first process writes what it found before any other gets here: they all time the same processor.
        return torch.bfloat16 if dtype() == "bfloat16" else torch.float32
    unfinished = unfinished_training(partial)
    if unfinished is not None:
        name = unfinished.begun.compute_dtype
    else:
        for path in partial.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        (partial / WORK).mkdir()
        name = dtype()
        BegunWork.now(facts, total=0, unit="step", compute_dtype=name).write(partial / WORK / BEGUN_NAME)
    return torch.bfloat16 if name == "bfloat16" else torch.float32


@dataclass(frozen=True)
class _Training:
    """A training whose data and base are known and checked."""

    weights: ModelWeights
    data: TrainingData
    options: FinetuneOptions
    base: TrainedBase
    dtype: torch.dtype
    device: torch.device

    def run(self, partial: Path, out: Path) -> FinetuneReport:
        """Trains, and leaves the adapter and its metrics in `partial`."""
        import torch

        from qtk.finetuning.checkpoints import Checkpoints
        from qtk.finetuning.evaluation import evaluate
        from qtk.finetuning.lora_model import adapter_tensors, learning_parameters, write_adapter
        from qtk.finetuning.metrics import MetricsLog
        from qtk.finetuning.training_loop import TrainingLoop, total_steps

        model = self._model()
        bare = model.accelerator.unwrap_model(model.model)
        parameters = list(learning_parameters(model.model).values())
        optimizer = torch.optim.AdamW(parameters, self.options.learning_rate, weight_decay=self.options.weight_decay)
        checkpoints = Checkpoints(partial)
        loop = TrainingLoop(model, optimizer, self.data, self.options, checkpoints)
        metrics = MetricsLog(partial, step=loop.state.step if loop.state.step else -1) if rank() == 0 else None
        try:
            state = loop.run(metrics)
        finally:
            if metrics is not None:
                metrics.close()
        tested = evaluate(model, self.data.test, len(self.data.tasks)) if self.data.test else None
        adapter = adapter_tensors(bare)
        if rank() == 0:
            write_adapter(bare, adapter, partial)
        model.accelerator.end_training()
        test: Sequence[float | None] = tested.by_task() if tested else [None] * len(self.data.tasks)
        return FinetuneReport(
            output=str(out),
            base=self.base,
            options=self.options,
            tasks=_task_results(self.data, state, test),
            seq_len=self.data.seq_len,
            lines=len(self.data.train),
            steps=state.step,
            planned_steps=total_steps(self.data, self.options),
            best_step=state.best_step if state.best is not None else state.step,
            stopped_early=state.step < total_steps(self.data, self.options),
            loss_before=state.before,
            loss=state.best,
            test_loss=tested.overall(self.options.weighted_loss, self.data.weights) if tested else None,
            parameters=sum(parameter.numel() for parameter in parameters),
            tokens=state.tokens,
            tokens_per_second=round(state.tokens / max(state.seconds, 1e-9), 1),
            devices=model.ranks,
            dtype=str(self.dtype).removeprefix("torch."),
            seconds=round(state.seconds, 1),
            peak_memory_bytes=0,
            packages=package_versions("torch", *_NEEDED),
        )

    def _model(self) -> ModelOnRanks:
        """The base with its adapter, on this device and spread over the others."""
        import accelerate
        import torch
        import transformers

        from qtk.finetuning.evaluation import ModelOnRanks
        from qtk.finetuning.frozen_base import BaseStorage, load_base
        from qtk.finetuning.lora_model import add_adapter
        from qtk.finetuning.sharding import shard

        transformers.utils.logging.disable_progress_bar()
        # Buffers are frozen codes and angles, which are equal on all ranks.
        spread = accelerate.DistributedDataParallelKwargs(broadcast_buffers=False)
        accelerator = accelerate.Accelerator(cpu=self.device.type == "cpu", kwargs_handlers=[spread])
        if accelerator.distributed_type.value in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
            raise InputError(
                f"accelerate is configured for {accelerator.distributed_type.value}. qtk spreads a base by --shard, and every "
                "process takes its rows by itself: start it with torchrun, or with a configuration without that."
            )
        accelerator.wait_for_everyone()
        device = accelerator.device if processes() > 1 else self.device
        # A base that is to be spread goes to its device part by part.
        whole_on = torch.device("cpu") if self.options.shard else device
        base = load_base(self.weights, BaseStorage(self.dtype, whole_on, self.options.qlora))
        model = add_adapter(base, self.options, self.base.name)
        return ModelOnRanks(
            model=shard(model, device)
            if self.options.shard
            else accelerator.prepare_model(model, device_placement=processes() > 1),
            accelerator=accelerator,
            dtype=self.dtype,
            pad=self.data.pad,
            micro_batch=self.options.micro_batch,
        )


def _task_results(data: TrainingData, state: TrainingState, test: Sequence[float | None]) -> list[TaskResult]:
    def at(losses: tuple[float | None, ...], task: int) -> float | None:
        return losses[task] if losses else None

    return [
        TaskResult(
            **rows.model_dump(),
            loss_before=at(state.before_by_task, task),
            loss=at(state.best_by_task, task),
            test_loss=test[task],
        )
        for task, rows in enumerate(data.tasks)
    ]
