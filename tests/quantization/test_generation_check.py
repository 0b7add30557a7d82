"""Generation runs from the written files, and texts that end in a loop are noticed."""

from __future__ import annotations

import pytest
import torch

from qtk.calibration.options import CalibrationOptions
from qtk.calibration.rows import as_token_rows
from qtk.quantization.generation_check import LoopCount, continue_greedily, count_loops, ends_in_loop, text_prompts
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.options import QuantizeOptions
from qtk.quantization.quantize import quantize_model

SMALL = CalibrationOptions(samples=8, seq_len=64)


@pytest.mark.parametrize("limit_bytes", [0, 1 << 30])  # every block read anew for each token; all kept
def test_generates_what_transformers_does(tiny, tmp_path, compute_dtype: str, limit_bytes: int) -> None:
    """Of a float copy of the quantized weights, in the dtype that the check computes in."""
    import transformers

    dtype = getattr(torch, compute_dtype)
    report = quantize_model(tiny("llama"), tmp_path / "out", QuantizeOptions(), SMALL)
    assert report.read_back.linears == 21
    assert 4.1 < report.read_back.bits_per_weight < 4.5  # 4 + 16 / 128, and the zero points and g_idx of the container
    written = ModelWeights.open(tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny("llama"), dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("proj.weight"):
                parameter.copy_(written.float_linear(name.removesuffix(".weight"), dtype))
        prompts = torch.tensor([[5, 6, 7], [9, 8, 9]])
        ours = torch.tensor(continue_greedily(written, prompts.tolist(), limit_bytes))
        logits = model(torch.cat((prompts, ours), 1)).logits[:, 2:-1].float()
    # Another order of sums may turn a tie: each token is the best one, or as good within rounding.
    chosen = logits.gather(2, ours[:, :, None])[:, :, 0]
    assert ours.shape == (2, 32)
    assert (logits.amax(-1) - chosen <= 0.02 * logits.abs().max()).all()


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([7] * 32, True),
        ([1, 2, 3, 4] * 8, True),
        (list(range(16)) + [5, 6] * 8, True),
        (list(range(16)) + list(range(8)) * 2, True),
        (list(range(16)) * 2, True),
        (list(range(12)) + list(range(10)) * 2, True),
        (list(range(32)), False),
        ([*range(31), 30], False),
    ],
)
def test_a_loop_is_noticed(tokens: list[int], expected: bool) -> None:
    assert ends_in_loop(tokens) is expected


LOOP, NONE = [3] * 32, list(range(32))


@pytest.mark.parametrize(
    ("quantized", "of_float", "loops", "repeats"),
    [
        ([LOOP], [LOOP], 1, False),
        ([LOOP], [NONE], 1, True),
        ([LOOP, NONE, LOOP, NONE], [NONE] * 4, 2, False),
        ([LOOP, NONE, LOOP, LOOP], [NONE, NONE, LOOP, LOOP], 3, True),
        ([LOOP, NONE, LOOP, LOOP], [LOOP, NONE, LOOP, LOOP], 3, False),
    ],
)
def test_only_loops_that_the_float_model_does_not_make_are_reported(quantized, of_float, loops, repeats) -> None:
    assert count_loops(quantized, lambda: of_float) == LoopCount(loops, repeats)


def test_prompts_are_alike_in_length() -> None:
    rows = as_token_rows([list(range(100))] * 9 + [[1, 2, 3]], 100)
    assert [len(prompt) for prompt in text_prompts(rows)] == [64] * 4
    assert [len(prompt) for prompt in text_prompts(rows.split(8)[1])] == [3] * 2
