"""vLLM reads our containers and writes the same greedy start as the dequantized model."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from support.other_servers import SUPPORT, vllm_environment

from qtk.quantization.scheme_model import LinearScheme

CONTAINERS = {
    "gptq": ("gptq", LinearScheme(4, 64, True)),
    "awq": ("awq", LinearScheme(4, 64, False)),
    "compressed-tensors-symmetric": ("compressed-tensors", LinearScheme(4, 64, True)),
    "compressed-tensors-asymmetric": ("compressed-tensors", LinearScheme(4, 64, False)),
}
COUNT, SURE = 16, 8


def read_by_vllm(python: str, directory: Path, place: Path) -> subprocess.CompletedProcess[str]:
    """The most likely tokens after a prompt, in place/tokens.json."""
    words = [python, SUPPORT / "owners_vllm.py", place / "tokens.json", COUNT, "def fibonacci(n):", f"it={directory}"]
    return subprocess.run(
        list(map(str, words)), capture_output=True, text=True, timeout=280, cwd=place, env=vllm_environment()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTAINERS)
def test_vllm_writes_what_the_dequantized_model_writes(
    name: str, smollm2, tmp_path, owners_python, transformers_logits, write_dequantized, write_quantized
) -> None:
    python = owners_python("vllm")
    container, scheme = CONTAINERS[name]
    directory = write_quantized(smollm2, tmp_path / name, container, scheme)
    done = read_by_vllm(python, directory, tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "tokens.json").read_text())["it"]
    prompt, tokens = found["prompt"], found["tokens"]
    logits = transformers_logits(write_dequantized(directory, tmp_path / "float"), torch.tensor([prompt + tokens]))[0]
    ours = logits[len(prompt) - 1 : -1]
    assert ours.argmax(1).tolist()[:SURE] == tokens[:SURE]
    # They compute with 16 bits: where two tokens are as good as equal, either may come.
    short = ours.max(1).values - ours[torch.arange(COUNT), tokens]
    assert float(short.max()) < 0.2, short


@pytest.mark.slow
def test_vllm_takes_gptq_with_symmetric_weights_only(tiny, tmp_path, owners_python, write_quantized) -> None:
    """What its record in targets/runtimes.py says."""
    directory = write_quantized(tiny("llama"), tmp_path / "gptq", "gptq", LinearScheme(4, 64, False))
    done = read_by_vllm(owners_python("vllm"), directory, tmp_path)
    assert done.returncode != 0
    assert "Unsupported quantization config: bits=4, sym=False" in done.stderr
