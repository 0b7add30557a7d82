"""What a directory holds: a model, an adapter, an engine, or another of qtk's outputs. Reads headers, not weights."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from qtk.adapters.config import CONFIG_NAME, WEIGHTS_NAME, read_config
from qtk.bench.accuracy.unfinished import unfinished_accuracy
from qtk.checkpoint.begun import UnfinishedWork
from qtk.checkpoint.manifest import MANIFEST_NAME, Manifest, made_in, read_manifest
from qtk.checkpoint.reader import Checkpoint, total_bytes
from qtk.checkpoint.safetensors_file import SafetensorsFile
from qtk.engines.description import is_engine, read_description
from qtk.errors import InputError
from qtk.finetuning.unfinished import unfinished_training
from qtk.models.registry import model_spec
from qtk.models.stated_sizes import contradictions
from qtk.quantization.formats.gguf import GgufFileFormat
from qtk.quantization.formats.gguf_checkpoint import GgufCheckpoint, is_gguf_directory
from qtk.quantization.formats.registry import format_of
from qtk.quantization.unfinished import unfinished_quantization
from qtk.release.bundle import unfinished_bundle
from qtk.release.figures import figures, verdict

Kind = Literal["model", "adapter", "engine", "result", "run", "folder", "unfinished work"]


class Inspection(BaseModel):
    """What was found: `kind`, `facts` by name, and `made_by`, the manifest's account of the command (empty without one).

    Facts are data: numbers, texts, lists and dictionaries of them. Names that end in "bytes" are sizes.
    """

    model_config = ConfigDict(frozen=True)
    directory: str
    kind: Kind
    facts: dict[str, Any]
    made_by: dict[str, Any] = {}


def inspect_directory(directory: Path) -> Inspection:
    """Looks at a directory. InputError when the path is not a directory, or qtk does not recognize what is in it."""
    if not directory.is_dir():
        raise InputError(f"{directory} {'is not a directory' if directory.exists() else 'does not exist'}.")
    manifest = read_manifest(directory) if (directory / MANIFEST_NAME).is_file() else None
    kind: Kind
    if manifest is None and (work := _unfinished_work(directory)):
        return _unfinished(directory, work)
    if is_engine(directory):
        kind, facts = "engine", _engine(directory)
    elif (directory / CONFIG_NAME).is_file():
        kind, facts = "adapter", _adapter(directory)
    elif (directory / "config.json").is_file():
        kind, facts = "model", _model(directory)
    elif manifest is not None:
        kind, facts = "result", _result(directory, manifest)
    elif made := made_in(directory):
        kind, facts = "folder", {"contains": [_summary(path) for path in made]}
    else:
        raise InputError(
            f"{directory} holds neither a model (config.json), an adapter ({CONFIG_NAME}), an engine (engine.json) "
            f"nor an output of qtk ({MANIFEST_NAME})."
        )
    return Inspection(directory=str(directory), kind=kind, facts=facts, made_by=_made_by(manifest))


def _unfinished_work(directory: Path) -> UnfinishedWork | None:
    return (
        unfinished_quantization(directory)
        or unfinished_training(directory)
        or unfinished_accuracy(directory)
        or unfinished_bundle(directory)
    )


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


def _summary(directory: Path) -> dict[str, Any]:
    manifest = read_manifest(directory)
    size = sum(digest.bytes for digest in manifest.outputs.values())
    return {"directory": directory.name, "kind": manifest.kind, "ended": manifest.ended, "bytes": size}


def _made_by(manifest: Manifest | None) -> dict[str, Any]:
    if manifest is None:
        return {}
    return {
        "command": shlex.join(manifest.command),
        "qtk": manifest.qtk_version,
        "kind": manifest.kind,
        "ended": manifest.ended,
        "seconds": manifest.seconds,
        "peak_memory_bytes": manifest.peak_memory_bytes,
        "inputs": [{"role": record.role, "path": record.path} for record in manifest.inputs],
    } | ({"warnings": manifest.warnings} if manifest.warnings else {})


def _result(directory: Path, manifest: Manifest) -> dict[str, Any]:
    return {
        "result": manifest.kind,
        "verdict": verdict(directory, manifest.kind),
        "files": {name: digest.bytes for name, digest in manifest.outputs.items()},
        "figures": [asdict(table) for table in figures(directory, manifest.kind)],
    }


def _model(directory: Path) -> dict[str, Any]:
    checkpoint = GgufCheckpoint(directory) if is_gguf_directory(directory) else Checkpoint(directory)
    spec = model_spec(checkpoint)
    dtypes = Counter(checkpoint.info(name).dtype_name for name in checkpoint.names)
    quantized = checkpoint.config.get("quantization_config")
    wrong = contradictions(checkpoint, spec)
    return {
        "architecture": spec.architecture,
        "parameters": spec.parameters(),
        "blocks": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "heads": {"query": spec.num_heads, "key_value": spec.num_kv_heads, "size": spec.head_dim},
        "vocabulary": spec.vocab_size,
        "context": spec.max_positions,
        "rope": {"kind": spec.rope.kind, "theta": spec.rope.theta},
        "tied_embeddings": spec.tie_word_embeddings,
        "tensors": dict(dtypes.most_common()),
        "bytes": total_bytes(checkpoint),
        "files": len(checkpoint.weight_files),
        "quantization": _quantization(checkpoint, spec.module_shapes()) if quantized else None,
    } | ({"contradictions": wrong} if wrong else {})


def _quantization(checkpoint: Checkpoint, shapes: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """The container, and how many linears are stored in which way; `linears` is None for a container that qtk does not
    read."""
    stated = checkpoint.config["quantization_config"]
    method = str(stated.get("quant_method") if isinstance(stated, dict) else stated)
    found = GgufFileFormat() if isinstance(checkpoint, GgufCheckpoint) else format_of(method)
    if found is None:
        return {"container": method, "linears": None, "in_float": None}
    schemes = found.stated_scheme(checkpoint, shapes).modules.values()
    counts = Counter((s.bits, s.group_size, s.symmetric) for s in schemes if s.quantized)
    return {
        "container": found.name,
        "linears": [
            {"count": count, "bits": bits, "group_size": group_size, "symmetric": symmetric}
            for (bits, group_size, symmetric), count in counts.most_common()
        ],
        "in_float": sum(not s.quantized for s in schemes),
    }


def _adapter(directory: Path) -> dict[str, Any]:
    config, weights = read_config(directory), SafetensorsFile(directory / WEIGHTS_NAME)
    return {
        "kind": config.kind,
        "rank": config.r,
        "alpha": config.lora_alpha,
        "base_model": config.base_model_name_or_path,
        "tensors": len(weights.tensors),
        "bytes": sum(info.nbytes for info in weights.tensors.values()),
    }


def _engine(directory: Path) -> dict[str, Any]:
    about = read_description(directory)
    return {
        "architecture": about.architecture,
        "gpu": about.gpu,
        "backend": about.backend,
        "built": about.built,
        "quantization": about.quantization.model_dump() if about.quantization else None,
        "lm_head_bits": about.lm_head_bits,
        "computes_in": about.dtype,
        "limits": {
            "input_tokens": about.limits.max_input_len,
            "output_tokens": about.limits.max_output_len,
            "rows": about.limits.max_batch,
        },
        "bytes": sum(stage.bytes for stage in about.stages),
        "files": [stage.file for stage in about.stages],
        "versions": about.versions,
        "notes": list(about.notes),
    }
