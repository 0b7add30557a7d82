"""The memory that a quantization needs is counted before it begins, and what does not fit is refused with what would."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import pytest

from qtk.errors import MachineError
from qtk.models.registry import spec_from_config
from qtk.quantization.memory_need import Work, activation_bytes, memory_need
from qtk.quantization.scheme_model import float_scheme

DEEPSEEK_33B = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 7168, "intermediate_size": 19200, "num_attention_heads": 56,
    "num_key_value_heads": 8, "num_hidden_layers": 62, "vocab_size": 32256,
}  # fmt: skip
SPEC = spec_from_config(DEEPSEEK_33B, "config")
WORK = Work("gptq", "default", tokens=32 * 512, seq_len=512, itemsize=4, stored_itemsize=2)
GB = 10**9


def need(work: Work = WORK, layers: int = 62):
    spec = spec_from_config({**DEEPSEEK_33B, "num_hidden_layers": layers}, "config")
    return memory_need(spec, float_scheme(spec), work, resident=GB // 4)


def test_33b_fits_into_8_gb_whatever_the_number_of_layers() -> None:
    assert need().least < 8 * GB
    assert need(layers=1).least == need(layers=62).least


def test_more_effort_needs_more_and_rounding_needs_least() -> None:
    efforts = [need(replace(WORK, effort=effort)).least for effort in ("fast", "default", "best")]
    assert efforts == sorted(efforts)
    assert need(replace(WORK, method="rtn", tokens=0)).least < efforts[0]


def test_what_the_rest_leaves_goes_to_activations() -> None:
    least = need().least
    assert activation_bytes(need(), (least + GB) / 1e9, total=24 * GB, available=20 * GB) == pytest.approx(GB, abs=2)
    assert activation_bytes(need(), None, total=32 * GB, available=20 * GB) == 2 * GB
    with pytest.raises(MachineError, match=r"2\.00 GB of memory free: .* are needed at the least"):
        activation_bytes(need(), None, total=24 * GB, available=2 * GB)


def test_the_figure_that_a_refusal_names_is_taken(tiny, tmp_path, run_qtk) -> None:
    words = ["quantize", tiny(), "-o", tmp_path / "out", "--samples", 8, "--seq-len", 32]
    refused = run_qtk(*words, "--memory", 0.01)
    assert refused.returncode == 4
    figure = re.search(r"Give --memory (\d+(\.\d)?)", refused.stderr)
    assert figure, refused.stderr
    assert not (tmp_path / "out").exists()
    # In this process the tests themselves grow between the two calls; the figure is rounded up to a tenth of a GB.
    assert run_qtk(*words, "--memory", float(figure[1]) + 0.1).returncode == 0


def test_a_disk_without_room_for_output_and_activations_is_refused_with_both_figures(
    tiny, tmp_path, run_qtk, monkeypatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    answer = run_qtk("quantize", tiny(), "-o", tmp_path / "out", "--samples", 8, "--seq-len", 32)
    assert answer.returncode == 4
    assert re.search(r"the output takes .*B and the activations of a run at most .*B beside it", answer.stderr)
    assert not list(tmp_path.glob("out*"))
