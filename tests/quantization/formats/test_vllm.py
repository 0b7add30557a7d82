"""vLLM reads our containers and writes the same greedy start as the dequantized model."""

from __future__ import annotations

import json
import subprocess

import pytest
import torch
from support.other_servers import SUPPORT, vllm_environment

from qtk.quantization.scheme_model import LinearScheme

CONTAINERS = {
    "gptq-symmetric": ("gptq", LinearScheme(4, 64, True)),
    "gptq-asymmetric": ("gptq", LinearScheme(4, 64, False)),
    "awq": ("awq", LinearScheme(4, 64, False)),
    "compressed-tensors-symmetric": ("compressed-tensors", LinearScheme(4, 64, True)),
    "compressed-tensors-asymmetric": ("compressed-tensors", LinearScheme(4, 64, False)),
}
COUNT, SURE = 16, 8


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTAINERS)
def test_vllm_writes_what_the_dequantized_model_writes(
    name: str, smollm2, tmp_path, owners_python, transformers_logits, write_dequantized, write_quantized
) -> None:
    python = owners_python("vllm")
    container, scheme = CONTAINERS[name]
    directory = write_quantized(smollm2, tmp_path / name, container, scheme)
    asked = [tmp_path / "tokens.json", COUNT, "def fibonacci(n):", f"{name}={directory}"]
    done = subprocess.run(
        [python, SUPPORT / "owners_vllm.py", *map(str, asked)],
        capture_output=True, text=True, timeout=280, cwd=tmp_path, env=vllm_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "tokens.json").read_text())[name]
    prompt, tokens = found["prompt"], found["tokens"]
    logits = transformers_logits(write_dequantized(directory, tmp_path / "float"), torch.tensor([prompt + tokens]))[0]
    ours = logits[len(prompt) - 1 : -1]
    assert ours.argmax(1).tolist()[:SURE] == tokens[:SURE]
    # They compute with 16 bits: where two tokens are as good as equal, either may come.
    short = ours.max(1).values - ours[torch.arange(COUNT), tokens]
    assert float(short.max()) < 0.2, short
