"""What `qtk plan --prepare` predicts: from counted products and bytes, and from how fast the machine is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.tiny_models import make_tiny

from qtk.engines.forecast import Rates
from qtk.engines.preparation import plan_preparation
from qtk.engines.preparation_options import PreparationOptions
from qtk.errors import InputError, MachineError
from qtk.models.registry import spec_from_config
from qtk.quantization.memory_need import Work
from qtk.quantization.products import block_products

DEEPSEEK_33B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 7168, "intermediate_size": 19200,
    "num_attention_heads": 56, "num_key_value_heads": 8, "num_hidden_layers": 62, "vocab_size": 32256,
    "max_position_embeddings": 16384, "rms_norm_eps": 1e-6,
}  # fmt: skip
RATES = Rates(
    products=5e10, forward=5e10, itemsize=4, rounding=1.5e-7, digest=1.5e9, disk=4e8, memory=2e10, start=3.0, threads=2
)


@pytest.fixture
def config(tmp_path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps(DEEPSEEK_33B))
    return tmp_path / "model"


def forecast(config: Path, **options: object) -> dict[str, object]:
    found = plan_preparation(config, PreparationOptions(samples=32, seq_len=512, **options), lambda place: RATES)
    return {step.step.partition(",")[0].partition(" ")[0]: step for step in found.steps}


def test_bytes_are_those_of_the_shapes(config) -> None:
    steps = forecast(config)
    assert steps["merge"].written == pytest.approx(66.7e9, rel=0.01)
    assert steps["quantize"].written == pytest.approx(17.9e9, rel=0.01)
    assert steps["quantize"].memory < 8e9
    assert steps["merge"].memory < steps["quantize"].memory


def test_half_the_speed_takes_twice_the_time_where_products_decide(config, monkeypatch) -> None:
    slow = RATES.model_copy(update={"products": RATES.products / 2, "forward": RATES.forward / 2})
    options = PreparationOptions(samples=32, seq_len=512)
    seconds = [plan_preparation(config, options, lambda place, r=rates: r).steps[1].seconds for rates in (RATES, slow)]
    assert 1.7 < seconds[1] / seconds[0] < 2
    assert forecast(config, effort="fast")["quantize"].seconds < 0.7 * forecast(config)["quantize"].seconds


def test_a_processor_that_multiplies_bfloat16_takes_less_of_both(config) -> None:
    fast = RATES.model_copy(update={"forward": 4 * RATES.forward, "itemsize": 2})
    options = PreparationOptions(samples=32, seq_len=512)
    slower, faster = (plan_preparation(config, options, lambda place, r=r: r).steps[1] for r in (RATES, fast))
    assert 0.5 < faster.seconds / slower.seconds < 0.8, "sums and roundings stay float32"
    assert faster.scratch < 0.6 * slower.scratch


def test_memory_counts_the_texts_that_are_written_at_the_end(config, monkeypatch) -> None:
    small = {**DEEPSEEK_33B, "hidden_size": 1024, "intermediate_size": 2048, "num_attention_heads": 8, "vocab_size": 64}
    (config / "config.json").write_text(json.dumps(small))
    monkeypatch.setattr("qtk.engines.forecast.total_memory", lambda: 64 << 30)
    weights = 4 * spec_from_config(small, "config").parameters()
    assert forecast(config)["quantize"].memory > weights
    assert forecast(config, memory=weights / 1e9)["quantize"].memory <= weights


@pytest.mark.parametrize("harm", ["missing", "cut off"])
def test_a_shard_that_is_not_whole_is_said_before_anything_is_timed(tmp_path, harm) -> None:
    model = make_tiny(tmp_path / "model", "llama", shard_size="100KB")
    shard = sorted(model.glob("model-*.safetensors"))[-1]
    if harm == "missing":
        shard.unlink()
    else:
        os.truncate(shard, shard.stat().st_size - 8)
    with pytest.raises(InputError, match=shard.name):
        plan_preparation(model, PreparationOptions(), lambda place: pytest.fail("the machine was timed"))


def test_memory_that_is_too_little_is_refused_as_quantize_would(config) -> None:
    with pytest.raises(MachineError, match="Give --memory"):
        forecast(config, memory=1.0)


def test_a_block_s_products_are_counted_as_by_hand() -> None:
    spec = spec_from_config({**DEEPSEEK_33B, "hidden_size": 8, "intermediate_size": 32, "num_attention_heads": 2,
                             "num_key_value_heads": 2, "vocab_size": 10}, "config")  # fmt: skip
    found = block_products(spec, Work("gptq", "fast", 10, 10, 4, 2))
    assert found.forward == 10 * (4 * 8 * 8 + 3 * 8 * 32) + 10 * 10 * 8
    assert found.hessians == 10 * (3 * 8 * 8 + 32 * 32) / 2
    assert found.rounding == (24 + 8 + 64) * 8 * 8 / 2 + 8 * 32 * 32 / 2
    assert found.drift == found.correction == 0


def test_the_command_measures_this_machine_and_says_what_the_disk_needs(config, run_qtk) -> None:
    (config / "config.json").write_text(json.dumps({**DEEPSEEK_33B, "num_hidden_layers": 1, "hidden_size": 448,
                                                    "intermediate_size": 1024}))  # fmt: skip
    answer = run_qtk("plan", config, "--prepare", "--samples", 32, "--seq-len", 512)
    assert answer.returncode == 0, answer.stderr
    for words in ("merge", "quantize, 8192 tokens", "build-engine --gpu cpu", "are needed at most"):
        assert words in answer.stdout
    data = json.loads(run_qtk("plan", config, "--prepare", "--json").stdout)
    assert data["rates"]["products"] > 1e8


def test_a_disk_that_is_too_small_for_the_steps_fails_the_plan(config, run_qtk) -> None:
    (config / "config.json").write_text(
        json.dumps({**DEEPSEEK_33B, "hidden_size": 7168 * 128, "intermediate_size": 19200 * 128})
    )
    answer = run_qtk("plan", config, "--prepare", "--samples", 1, "--seq-len", 64)
    assert answer.returncode == 3
    assert "merge" in answer.stdout
    assert "the steps take up to" in answer.stderr
