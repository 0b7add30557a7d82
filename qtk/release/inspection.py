"""What a directory holds: a model, an adapter, an engine, or another of qtk's outputs. Reads headers, not weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from qtk.adapters.config import CONFIG_NAME, WEIGHTS_NAME, read_config
from qtk.bench.accuracy.unfinished import unfinished_accuracy
from qtk.checkpoint.begun import UnfinishedWork
from qtk.checkpoint.manifest import MANIFEST_NAME, Manifest, read_manifest
from qtk.checkpoint.reader import Checkpoint, total_bytes
from qtk.checkpoint.safetensors_file import SafetensorsFile
from qtk.engines.description import is_engine, read_description
from qtk.errors import InputError
from qtk.models.registry import model_spec
from qtk.quantization.formats.gguf import GgufFileFormat
from qtk.quantization.formats.gguf_checkpoint import GgufCheckpoint, is_gguf_directory
from qtk.quantization.formats.registry import format_of
from qtk.quantization.unfinished import unfinished_quantization

Kind = Literal["model", "adapter", "engine", "result", "unfinished work"]


class Inspection(BaseModel):
    """What was found: `kind`, `facts` by name, and `made_by`, the manifest's account of the command (empty without one)."""

    model_config = ConfigDict(frozen=True)
    directory: str
    kind: Kind
    facts: dict[str, Any]
    made_by: dict[str, Any]


def inspect_directory(directory: Path) -> Inspection:
    """Looks at a directory. InputError when the path is not a directory, or qtk does not recognize what is in it."""
    if not directory.is_dir():
        raise InputError(f"{directory} {'is not a directory' if directory.exists() else 'does not exist'}.")
    manifest = read_manifest(directory) if (directory / MANIFEST_NAME).is_file() else None
    kind: Kind
    if manifest is None and (work := unfinished_quantization(directory) or unfinished_accuracy(directory)):
        return _unfinished(directory, work)
    if is_engine(directory):
        kind, facts = "engine", _engine(directory)
    elif (directory / CONFIG_NAME).is_file():
        kind, facts = "adapter", _adapter(directory)
    elif (directory / "config.json").is_file():
        kind, facts = "model", _model(directory)
    elif manifest is not None:
        kind, facts = "result", {name: digest.bytes for name, digest in manifest.outputs.items()}
    else:
        raise InputError(
            f"{directory} holds neither a model (config.json), an adapter ({CONFIG_NAME}), an engine (engine.json) "
            f"nor an output of qtk ({MANIFEST_NAME})."
        )
    return Inspection(directory=str(directory), kind=kind, facts=facts, made_by=_made_by(manifest))


def _unfinished(directory: Path, work: UnfinishedWork) -> Inspection:
    facts = {
        "will be": work.kind,
        "done": work.how_far,
        "begun": work.begun.begun,
        "command": " ".join(work.begun.command),
        "to go on": "the same command with --resume",
        "to start again": "the same command with --overwrite, which removes this",
    }
    if work.details:
        facts["holds"] = work.details
    return Inspection(directory=str(directory), kind="unfinished work", facts=facts, made_by={})


def _made_by(manifest: Manifest | None) -> dict[str, Any]:
    if manifest is None:
        return {}
    return {
        "command": " ".join(manifest.command),
        "qtk": manifest.qtk_version,
        "kind": manifest.kind,
        "ended": manifest.ended,
        "seconds": manifest.seconds,
        "peak_memory_bytes": manifest.peak_memory_bytes,
        "inputs": [f"{record.role}: {record.path}" for record in manifest.inputs],
    } | ({"warnings": manifest.warnings} if manifest.warnings else {})


def _model(directory: Path) -> dict[str, Any]:
    checkpoint = GgufCheckpoint(directory) if is_gguf_directory(directory) else Checkpoint(directory)
    spec = model_spec(checkpoint)
    dtypes = Counter(checkpoint.info(name).dtype_name for name in checkpoint.names)
    facts = {
        "architecture": spec.architecture,
        "parameters": spec.parameters(),
        "blocks": spec.num_layers,
        "hidden size": spec.hidden_size,
        "heads": f"{spec.num_heads}, {spec.num_kv_heads} for keys and values, of {spec.head_dim}",
        "vocabulary": spec.vocab_size,
        "context": spec.max_positions,
        "rope": f"{spec.rope.kind}, theta {spec.rope.theta:g}",
        "tied embeddings": spec.tie_word_embeddings,
        "tensors": ", ".join(f"{count} {dtype}" for dtype, count in dtypes.most_common()),
        "bytes": total_bytes(checkpoint),
        "files": len(checkpoint.weight_files),
    }
    quantization = checkpoint.config.get("quantization_config")
    facts["quantization"] = "none" if not quantization else _quantization(checkpoint, spec.module_shapes())
    return facts


def _quantization(checkpoint: Checkpoint, shapes: dict[str, tuple[int, int]]) -> str:
    method = str(checkpoint.config["quantization_config"].get("quant_method"))
    found = GgufFileFormat() if isinstance(checkpoint, GgufCheckpoint) else format_of(method)
    if found is None:
        return f"container {method}, which qtk does not read"
    scheme = found.read_scheme(checkpoint, shapes)
    counts = Counter(
        f"{s.bits} bits, group {s.group_size}, {'symmetric' if s.symmetric else 'asymmetric'}"
        if s.quantized
        else "in float"
        for s in scheme.modules.values()
    )
    parts = (f"{count} linear{'' if count == 1 else 's'} {text}" for text, count in counts.most_common())
    return f"container {found.name}: " + "; ".join(parts)


def _adapter(directory: Path) -> dict[str, Any]:
    config, weights = read_config(directory), SafetensorsFile(directory / WEIGHTS_NAME)
    return {
        "kind": config.kind,
        "rank": config.r,
        "alpha": config.lora_alpha,
        "base model": config.base_model_name_or_path,
        "tensors": len(weights.tensors),
        "bytes": sum(info.nbytes for info in weights.tensors.values()),
    }


def _engine(directory: Path) -> dict[str, Any]:
    about = read_description(directory)
    q = about.quantization
    facts = {
        "architecture": about.architecture,
        "runs on": f"{about.gpu} ({about.backend})",
        "built": about.built,
        "linears": f"{q.bits} bits, group {q.group_size}, {q.method}" if q else about.dtype,
        "output head": f"{about.lm_head_bits} bits",
        "computes in": about.dtype,
        "longest call": f"{about.limits.max_input_len} + {about.limits.max_output_len} tokens",
        "most rows": about.limits.max_batch,
        "bytes": sum(stage.bytes for stage in about.stages),
        "files": ", ".join(stage.file for stage in about.stages),
        "versions": ", ".join(f"{name} {version}" for name, version in about.versions.items()),
    }
    return facts | ({"notes": " ".join(about.notes)} if about.notes else {})
