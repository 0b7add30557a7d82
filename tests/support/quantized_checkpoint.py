"""Writes a small quantized checkpoint in any format by plain rounding: what the tests of containers and backends read."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qtk.checkpoint.reader import Checkpoint
from qtk.checkpoint.writer import CheckpointWriter, TensorSpec, copy_companions
from qtk.models.registry import model_spec
from qtk.models.spec import LM_HEAD_MODULE
from qtk.quantization.formats.registry import checkpoint_format
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.scheme_model import LinearScheme, QuantizationScheme


def rounded(weight: torch.Tensor, scheme: LinearScheme) -> QuantizedLinear:
    """Round to nearest; symmetric uses the full range with a signed scale, so negative scales occur."""
    top = 2**scheme.bits - 1
    groups = weight.float().view(weight.shape[0], -1, scheme.group_size)
    if scheme.symmetric:
        middle = 2 ** (scheme.bits - 1)
        extreme = groups.gather(2, groups.abs().argmax(2, keepdim=True)).squeeze(2)
        scales = torch.where(extreme == 0, 1.0, -extreme / middle).half()
        zeros = None
        codes = groups / scales.float().unsqueeze(2) + middle
    else:
        low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
        scales = ((high - low) / top).clamp(min=1e-6).half()
        zeros = (-low / scales.float()).round().clamp(1, top).to(torch.uint8)
        codes = groups / scales.float().unsqueeze(2) + zeros.unsqueeze(2)
    codes = codes.round().clamp(0, top).to(torch.uint8).view(weight.shape)
    return QuantizedLinear(codes, scales, zeros, scheme.bits, scheme.group_size)


def write_quantized(
    source: Path,
    out: Path,
    format_name: str,
    default: LinearScheme,
    overrides: dict[str, LinearScheme] | None = None,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """The float checkpoint `source`, rounded and written into `out` in a format; lm_head stays float unless overridden."""
    checkpoint, chosen = Checkpoint(source), checkpoint_format(format_name)
    spec = model_spec(checkpoint)
    modules = dict.fromkeys(spec.module_shapes(), default)
    if LM_HEAD_MODULE in modules:
        modules[LM_HEAD_MODULE] = replace(default, bits=16)
    scheme = QuantizationScheme(default, {**modules, **(overrides or {})})
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in spec.all_tensors().items():
        module = name.removesuffix(".weight")
        linear = scheme.of(module)
        tensor = checkpoint.tensor(name)
        if not linear.quantized:
            tensors[name] = tensor.to(dtype)
            continue
        assert chosen.refusals(module, (shape[0], shape[1]), linear) == []
        packed = chosen.pack(module, rounded(tensor, linear))
        expected = chosen.specs(module, (shape[0], shape[1]), linear)
        assert {n: TensorSpec(t.dtype, tuple(t.shape)) for n, t in packed.items()} == expected
        tensors |= packed
    assert chosen.scheme_refusals(scheme) == []
    config = {
        **checkpoint.config,
        "dtype": str(dtype).removeprefix("torch."),
        "quantization_config": chosen.quantization_config(scheme, "rtn"),
    }
    out.mkdir(parents=True)
    with CheckpointWriter(out, {n: TensorSpec(t.dtype, tuple(t.shape)) for n, t in tensors.items()}) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    copy_companions(checkpoint, out, config=json.dumps(config, indent=2).encode())
    for name, content in chosen.extra_files(scheme).items():
        (out / name).write_bytes(content)
    chosen.finish(ModelWeights.open(out))
    return out


def write_dequantized(directory: Path, out: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The quantized checkpoint `directory` as a float one in `out`: what its quantized weights mean, by our reading."""
    weights = ModelWeights.open(directory)
    tensors = {}
    for name in weights.spec.all_tensors():
        module = name.removesuffix(".weight")
        quantized = weights.scheme.of(module).quantized
        source = weights.float_linear(module, dtype) if quantized else weights.checkpoint.tensor(name)
        tensors[name] = source.to(dtype)
    config = {k: v for k, v in weights.checkpoint.config.items() if k != "quantization_config"}
    config["dtype"] = str(dtype).removeprefix("torch.")
    out.mkdir(parents=True)
    with CheckpointWriter(out, {n: TensorSpec(t.dtype, tuple(t.shape)) for n, t in tensors.items()}) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    copy_companions(weights.checkpoint, out, config=json.dumps(config, indent=2).encode())
    return out


def transformers_logits(directory: Path, tokens: torch.Tensor) -> torch.Tensor:
    """float32 logits of a float checkpoint by transformers in this process."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        return model(tokens).logits


def owners_python(name: str) -> str:
    """The Python of another environment: QTK_<NAME>_PYTHON, or .venv-<name> beside this checkout; skips without it.

    The owners' packages pin other versions of torch, transformers or onnx than ours, so each runs in its own process.
    """
    variable = f"QTK_{name.upper()}_PYTHON"
    path = Path(os.environ.get(variable) or Path(__file__).resolve().parents[2] / f".venv-{name}" / "bin" / "python")
    if not path.is_file():
        pytest.skip(f"no environment {name!r} (set {variable} to its python)")
    return str(path)


@pytest.fixture(scope="session", name="rounded")
def _rounded():
    return rounded


@pytest.fixture(scope="session", name="write_quantized")
def _write_quantized():
    return write_quantized


@pytest.fixture(scope="session", name="write_dequantized")
def _write_dequantized():
    return write_dequantized


@pytest.fixture(scope="session", name="transformers_logits")
def _transformers_logits():
    return transformers_logits


@pytest.fixture(scope="session", name="owners_python")
def _owners_python():
    return owners_python
