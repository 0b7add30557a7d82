"""The containers judged by the code of those who own them, each in an environment of its own where it is installed."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.scheme_model import LinearScheme

TESTS = Path(__file__).resolve().parents[2] / "support"
SYMMETRIC, ASYMMETRIC = LinearScheme(4, 64, True), LinearScheme(4, 64, False)


def run_owner(python: str, *words: object) -> None:
    """Runs a script of this folder, or a module, with another environment's Python, offline and without a GPU."""
    script = [TESTS / word if str(word).endswith(".py") else word for word in words]
    with tempfile.TemporaryDirectory() as place:  # some leave their logs where they are run
        done = subprocess.run(
            [python, *map(str, script)],
            capture_output=True,
            text=True,
            timeout=280,
            cwd=place,
            env={**os.environ, "GPTQMODEL_CPU_WORKERS": "2", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_gptqmodel_and_compressed_tensors_load_them_in_transformers(
    tiny, tmp_path, owners_python, transformers_logits, write_dequantized, write_quantized
) -> None:
    """gptq and awq run on GPTQModel's CPU kernels, compressed-tensors is decompressed: logits equal ours."""
    python = owners_python("interop")
    chosen = {
        "gptq-symmetric": ("gptq", SYMMETRIC),
        "gptq-asymmetric": ("gptq", ASYMMETRIC),
        "awq-symmetric": ("awq", SYMMETRIC),
        "awq-asymmetric": ("awq", ASYMMETRIC),
        # Asymmetric: transformers 5.23 with compressed-tensors 0.20 expects zero points unpacked and refuses every
        # such file, its owner's included; the test below asks the package itself.
        "compressed-tensors-symmetric": ("compressed-tensors", SYMMETRIC),
    }
    directories = {
        name: write_quantized(tiny("llama"), tmp_path / name, container, scheme)
        for name, (container, scheme) in chosen.items()
    }
    tokens = torch.randint(2, 258, (2, 24), generator=torch.Generator().manual_seed(3))
    save_file({"tokens": tokens}, tmp_path / "tokens.safetensors")
    # GPTQModel's own file, made with its defaults: what users have from before.
    directories["gptqmodel"] = tmp_path / "gptqmodel"
    run_owner(python, "owners_gptqmodel.py", tiny("llama"), directories["gptqmodel"], 64)
    named = [f"{name}={path}" for name, path in directories.items()]
    run_owner(python, "owners_logits.py", tmp_path / "tokens.safetensors", tmp_path / "logits.safetensors", *named)
    logits = load_file(tmp_path / "logits.safetensors")
    floats = transformers_logits(tiny("llama"), tokens)
    for name, directory in directories.items():
        ours = transformers_logits(write_dequantized(directory, tmp_path / f"{name}-float"), tokens)
        error = float((logits[name] - ours).abs().max())
        assert error < 0.01, f"{name}: {error}"  # their kernels round activations; a wrong code or zero costs far more
        assert float((ours - floats).abs().max()) > 0.3


@pytest.mark.parametrize(
    ("bits", "group", "symmetric"), [(4, 32, True), (4, 64, False), (4, 128, False), (8, 32, True), (8, 64, False)]
)
def test_compressed_tensors_decompresses_each_linear(
    tiny, tmp_path, bits: int, group: int, symmetric: bool, write_quantized
) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationConfig

    out = write_quantized(tiny("llama"), tmp_path / "out", "compressed-tensors", LinearScheme(bits, group, symmetric))
    weights = ModelWeights.open(out)
    config = QuantizationConfig.model_validate(weights.checkpoint.config["quantization_config"])
    (scheme,) = config.config_groups.values()
    for module, _ in weights.spec.all_linears():
        state = {
            name.removeprefix(f"{module}."): weights.checkpoint.tensor(name)
            for name in weights.checkpoint.names
            if name.startswith(f"{module}.")
        }
        theirs = PackedQuantizationCompressor.decompress(state, scheme)["weight"]
        # They multiply in the scale's float16; one rounding apart from ours.
        torch.testing.assert_close(theirs, weights.float_linear(module, torch.float16), atol=0, rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("container", "scheme"),
    [("gptq", SYMMETRIC), ("gptq", ASYMMETRIC), ("awq", ASYMMETRIC)],
    ids=["gptq-symmetric", "gptq-asymmetric", "awq-asymmetric"],
)
def test_onnxruntime_genai_builds_the_same_weights(
    tiny, tmp_path, container: str, scheme: LinearScheme, owners_python, write_quantized
) -> None:
    """The MatMulNBits weights in the graph of ONNX Runtime GenAI's builder are ours, to the bit."""
    python = owners_python("genai")
    directory = write_quantized(tiny("llama"), tmp_path / "in", container, scheme)
    settings = ["-c", tmp_path / "cache", "-p", "int4", "-e", "cpu", "--extra_options", "accuracy_level=1"]
    builder = [python, "-m", "onnxruntime_genai.models.builder"]
    run_owner(*builder, "-m", "tiny", "-i", directory, "-o", tmp_path / "out", *settings)
    model = onnx.load(tmp_path / "out" / "model.onnx")
    stored = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in model.graph.initializer}
    weights = ModelWeights.open(directory)
    fused = {"attn.qkv_proj": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]}
    alone = {
        "attn.o_proj": ["self_attn.o_proj"],
        **{f"mlp.{n}_proj": [f"mlp.{n}_proj"] for n in ("gate", "up", "down")},
    }
    for layer in range(weights.spec.num_layers):
        for theirs, ours in (fused | alone).items():
            prefix = f"model.layers.{layer}.{theirs}.MatMulNBits"
            packed = stored[f"{prefix}.qweight"]  # [out, groups, group / 2], low nibble first
            codes = torch.stack((packed & 15, packed >> 4), dim=-1).reshape(packed.shape[0], packed.shape[1], -1)
            zeros = stored[f"{prefix}.qzeros"].view(packed.shape[0], -1)
            zeros = torch.stack((zeros & 15, zeros >> 4), dim=-1).reshape(packed.shape[0], -1, 1)
            scales = stored[f"{prefix}.scales"].view(packed.shape[0], -1, 1)
            built = (codes.float() - zeros.float()) * scales
            expected = [weights.float_linear(f"model.layers.{layer}.{name}", torch.float32) for name in ours]
            assert torch.equal(built.flatten(1), torch.cat(expected))


@pytest.mark.slow
@pytest.mark.parametrize("group", [64, 128])
def test_modelopt_exports_and_packs_alike(tiny, tmp_path, group: int, owners_python, write_quantized) -> None:
    """NVIDIA ModelOpt's own W4A16_AWQ export reads here as it is meant, and its packing of our codes gives our bytes."""
    python = owners_python("modelopt")
    directory = write_quantized(tiny("llama"), tmp_path / "ours", "modelopt", LinearScheme(4, group, True))
    ours = ModelWeights.open(directory)
    floats = {name: ours.float_linear(name, torch.float32) for name, _ in ours.spec.all_linears()}
    save_file(floats, directory / "dequantized.safetensors")
    run_owner(python, "owners_modelopt.py", tiny("llama"), directory, tmp_path, group)
    (directory / "dequantized.safetensors").unlink()
    repacked = load_file(tmp_path / "repacked.safetensors")
    assert set(repacked) == set(floats)
    for module, packed in repacked.items():
        assert torch.equal(packed, ours.checkpoint.tensor(f"{module}.weight"))
    theirs, meant = ModelWeights.open(tmp_path / "export"), load_file(tmp_path / "meant.safetensors")
    assert theirs.scheme.default == LinearScheme(4, group, True)
    for module in floats:
        read = theirs.float_linear(module, torch.float32)
        # They simulate in float16 and export in float32, so a weight halfway between two codes may go either way.
        close = torch.isclose(read, meant[module], atol=1e-3, rtol=2e-3)
        assert float((~close).float().mean()) < 1e-3
        names = {n.removeprefix(module) for n in ours.checkpoint.names if n.startswith(f"{module}.")}
        assert {n.removeprefix(module) for n in theirs.checkpoint.names if n.startswith(f"{module}.")} <= names
        for suffix in (".weight", ".weight_scale"):
            a, b = ours.checkpoint.info(module + suffix), theirs.checkpoint.info(module + suffix)
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
