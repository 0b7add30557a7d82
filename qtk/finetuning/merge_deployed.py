"""Merging onto a quantized base: its linears are dequantized one by one, an adapter that learnt beside them is added, rounded once.

The result is a float model: exactly what training saw, in the checkpoint's float dtype. `merge_adapters` is what `qtk merge`
calls: it takes a base of either kind.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch

from qtk.adapters import arithmetic
from qtk.adapters.adapter import Adapter, open_adapter
from qtk.adapters.card import write_merged_card
from qtk.adapters.companions import write_companions
from qtk.adapters.merge import MergeResult, adapter_weights, describe_adapter, merge
from qtk.adapters.options import MergeOptions
from qtk.adapters.trained_base import fingerprint, trained_base
from qtk.checkpoint.hub import model_directory
from qtk.checkpoint.json_file import read_json
from qtk.checkpoint.manifest import ManifestRecorder
from qtk.checkpoint.reader import config_bytes, require_finite
from qtk.checkpoint.staging import staged_directory
from qtk.checkpoint.writer import CheckpointWriter, TensorSpec
from qtk.errors import InputError, listing
from qtk.peak_memory import PeakMemory
from qtk.progress import Progress
from qtk.quantization.model_weights import ModelWeights

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def merge_adapters(
    base: Path, adapters: Sequence[Path], out: Path, options: MergeOptions, *, overwrite: bool = False
) -> MergeResult:
    """Merges adapters into a float base (`merge`), or those that were trained on a quantized base into that.

    Errors as of `merge`; InputError also for an adapter that was not trained on this quantized base.
    """
    base = model_directory(base)
    found = [model_directory(path, "adapter") for path in adapters]
    known = [trained_base(path) for path in found]
    quantized = bool(read_json(base / "config.json").get("quantization_config"))
    if quantized and any(it is not None and it.rounding == "deployed" for it in known):
        return _merge_deployed(base, found, out, options, overwrite=overwrite)
    apart = [
        f"{path} was trained on the quantized {it.name}"
        for path, it in zip(found, known, strict=True)
        if it is not None and it.rounding == "deployed"
    ]
    if apart and not options.any_base:
        raise InputError(
            f"{base} is a float model, and not what an adapter was trained on:\n{listing(apart)}\nGive that checkpoint as the "
            "base. To merge into this model although it is another, add --any-base."
        )
    return merge(base, found, out, options, overwrite=overwrite)


def _merge_deployed(
    base: Path, paths: Sequence[Path], out: Path, options: MergeOptions, *, overwrite: bool
) -> MergeResult:
    start = time.monotonic()
    if options.qlora_base == "nf4":
        raise InputError(f"{base} is quantized already, so it is not rounded to NF4. Leave out --qlora-base.")
    recorder = ManifestRecorder("merge", options.model_dump(mode="json"))
    weights = ModelWeights.open(base)
    adapters = [open_adapter(path) for path in paths]
    with (
        PeakMemory() as memory,
        staged_directory(out, overwrite=overwrite, inputs=(base, *paths)) as directory,
        closing(weights.checkpoint) as checkpoint,
    ):
        recorder.add_input("base", base, checkpoint.files)
        for adapter in adapters:
            recorder.add_input("adapter", adapter.path, adapter.files)
        factors = adapter_weights(options.weight, adapters)
        if not options.any_base:
            _require_own_base(weights, adapters)
        _require_updates_of_linears(weights, adapters)
        changed = _write(weights, adapters, factors, directory, shard_bytes=int(options.shard_gb * 1e9))
        config = {name: value for name, value in checkpoint.config.items() if name != "quantization_config"}
        write_companions(checkpoint, directory, None, config=config_bytes(config))
        write_merged_card(directory, out.name, checkpoint, adapters, factors)
        described = [describe_adapter(adapter, weight) for adapter, weight in zip(adapters, factors, strict=True)]
        recorder.notes = {
            "adapters": [adapter.model_dump(exclude={"path"}) for adapter in described],
            "tensors_changed": changed,
            "base_rounding": "deployed",
        }
        recorder.write(directory, out, memory.peak_bytes)
        written = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    return MergeResult(
        output=str(out),
        adapters=described,
        tensors_changed=changed,
        tensors_copied=len(weights.spec.all_tensors()) - changed,
        nf4_rounded=0,
        untied=False,
        vocabulary=None,
        tokenizer_from=str(base),
        bytes_written=written,
        seconds=round(time.monotonic() - start, 3),
        peak_memory_bytes=memory.peak_bytes,
        memory_above_start_bytes=memory.above,
    )


def _require_own_base(weights: ModelWeights, adapters: Sequence[Adapter]) -> None:
    own = fingerprint(weights.checkpoint)
    others = [
        str(adapter.path)
        for adapter in adapters
        if (known := trained_base(adapter.path)) is None or (known.rounding, known.fingerprint) != ("deployed", own)
    ]
    if others:
        raise InputError(
            f"{weights.checkpoint.path} is quantized, and its weights are not those that these adapters were trained on:\n"
            f"{listing(others)}\nGive the checkpoint that they were trained on, or add --any-base."
        )


def _require_updates_of_linears(weights: ModelWeights, adapters: Sequence[Adapter]) -> None:
    """InputError for anything but low-rank updates of the decoder's linears, which is what `qtk finetune` makes."""
    linears = {name for name, _ in weights.spec.all_linears()}
    shapes = weights.spec.module_shapes()
    faults: list[str] = []
    for adapter in adapters:
        faults += [f"{adapter.path}: {name}" for name in (*adapter.replaced, *adapter.base_copy)]
        for module, parts in adapter.parts.items():
            complete = module in linears and parts.a and parts.b and not parts.tokens
            fits = complete and (adapter.info(parts.b).shape[0], adapter.info(parts.a).shape[1]) == shapes[module]
            faults += [] if fits else [f"{adapter.path}: {module}"]
    if len(adapters) > 1 and any(adapter.config.use_dora for adapter in adapters):
        faults.append("DoRA can be merged alone only")
    if faults:
        raise InputError(f"These do not fit the quantized {weights.checkpoint.path}:\n{listing(faults)}")


def _write(
    weights: ModelWeights, adapters: Sequence[Adapter], factors: Sequence[float], directory: Path, *, shard_bytes: int
) -> int:
    """Writes the merged tensors. Returns how many an adapter changed."""
    config = weights.checkpoint.config
    dtype = _DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), torch.bfloat16)
    specs = {name: TensorSpec(dtype, shape) for name, shape in weights.spec.all_tensors().items()}
    changed = 0
    with (
        CheckpointWriter(directory, specs, shard_bytes=shard_bytes) as writer,
        Progress("merge", len(specs), "tensors") as progress,
    ):
        for name in specs:
            module = name.removesuffix(".weight")
            if module in weights.scheme.modules and name.endswith(".weight"):
                value = weights.float_linear(module, torch.float32)
                updates = [
                    (adapter, factor)
                    for adapter, factor in zip(adapters, factors, strict=True)
                    if module in adapter.parts
                ]
                for adapter, factor in updates:
                    _add(value, adapter, module, factor)
                changed += bool(updates)
            else:
                value = weights.checkpoint.tensor(name, finite=True)
            value = value.to(dtype)
            require_finite(value, f"The merged {name}")
            writer.write(name, value)
            progress.advance(1, name)
    return changed


def _add(weight: torch.Tensor, adapter: Adapter, module: str, factor: float) -> None:
    """Adds an adapter's update to a weight [out, in] float32, in place."""
    config, parts = adapter.config, adapter.parts[module]
    scale = factor * arithmetic.scaling(config.alpha(module), config.rank(module), rank_stabilized=config.use_rslora)
    left, right = arithmetic.factors(adapter.tensor(parts.a), adapter.tensor(parts.b), scale, transposed=False)
    arithmetic.add_update_(weight, left, right)
    if parts.magnitude:
        arithmetic.scale_rows_(weight, adapter.tensor(parts.magnitude).float().reshape(-1))
