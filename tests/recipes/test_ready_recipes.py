"""The ready recipes fit the models that they name, by the config.json that their makers published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qtk.engines.options import PlanOptions
from qtk.engines.plan import plan_engine
from qtk.models.registry import spec_from_config
from qtk.quantization.formats.registry import checkpoint_format
from qtk.quantization.scheme import resolve_scheme, scheme_refusals
from qtk.quantization.target_settings import for_target, target_refusals
from qtk.recipes.reading import find_recipe, read_recipe
from qtk.recipes.schema import DEMO_MODEL
from qtk.shipped import shipped_names

# The published config.json of each model, without what only a tokenizer or a trainer reads.
_DEEPSEEK: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"factor": 4.0, "type": "linear"},
    "rope_theta": 100000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32256,
}
_QWEN: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 152064,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "deepseek-ai/deepseek-coder-33b-base": {
        **_DEEPSEEK,
        "hidden_size": 7168,
        "intermediate_size": 19200,
        "num_hidden_layers": 62,
        "num_attention_heads": 56,
        "num_key_value_heads": 8,
    },
    "deepseek-ai/deepseek-coder-6.7b-instruct": {
        **_DEEPSEEK,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "Qwen/Qwen2.5-Coder-7B-Instruct": {
        **_QWEN,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_window_layers": 28,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "Qwen/Qwen2.5-Coder-32B-Instruct": {
        **_QWEN,
        "hidden_size": 5120,
        "intermediate_size": 27648,
        "max_window_layers": 70,
        "num_hidden_layers": 64,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
    },
    DEMO_MODEL: {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-05,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "vocab_size": 49152,
    },
}
# Billions of parameters, as the model cards count them.
SIZES = {
    "deepseek-ai/deepseek-coder-33b-base": 33.3,
    "deepseek-ai/deepseek-coder-6.7b-instruct": 6.74,
    "Qwen/Qwen2.5-Coder-7B-Instruct": 7.62,
    "Qwen/Qwen2.5-Coder-32B-Instruct": 32.8,
    DEMO_MODEL: 0.135,
}
TEMPLATE = "template"
READY = [name for name in shipped_names("recipes") if name != TEMPLATE]


def test_the_recipes_that_were_asked_for_are_there() -> None:
    assert set(shipped_names("recipes")) == {
        "smollm2-135m",
        "codefuse-deepseek-33b-a10",
        "codefuse-deepseek-33b-finetune",
        "deepseek-coder-6.7b-rtx4090",
        "qwen2.5-coder-7b-l4",
        "qwen2.5-coder-32b-a100",
        TEMPLATE,
    }


@pytest.mark.parametrize("name", READY)
def test_a_ready_recipe_fits_its_model_and_its_gpu(tmp_path: Path, name: str) -> None:
    recipe = read_recipe(find_recipe(name).path)
    config = CONFIGS[recipe.model]
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = spec_from_config(config, "config.json")
    assert spec.parameters() / 1e9 == pytest.approx(SIZES[recipe.model], rel=0.01)

    assert recipe.quantize is not None
    assert recipe.build is not None
    options = for_target(recipe.quantize.quantize_options(tmp_path), spec)
    scheme, container = resolve_scheme(spec, options), checkpoint_format(options.container)
    assert scheme_refusals(spec, scheme, container) == []
    assert target_refusals(options, spec, scheme) == []

    engine = recipe.build.build_options(tmp_path).model_dump()
    quantized = {"bits": options.bits, "group_size": scheme.default.group_size, "sym": options.sym}
    plan = plan_engine(tmp_path, PlanOptions(**engine, **quantized))
    assert plan.refusals == []
    if recipe.build.float_engine:
        assert plan_engine(tmp_path, PlanOptions(**engine, bits=16)).refusals == []
    latency = recipe.bench.latency
    assert latency is not None
    shapes = [tuple(map(int, shape.split("/"))) for shape in latency.shapes.split(",")]
    limits = recipe.build
    assert all(a <= (limits.max_input_len or 0) and b <= (limits.max_output_len or 0) for a, b in shapes)


def test_the_model_case_is_tuned_with_the_published_values(tmp_path: Path) -> None:
    recipe = read_recipe(find_recipe("codefuse-deepseek-33b-finetune").path)
    assert recipe.finetune is not None
    options = recipe.finetune.finetune_options(tmp_path)
    assert (options.qlora, options.rank, options.alpha, options.dropout) == (True, 192, 32, 0.05)
    assert (options.weighted_loss, options.padding, options.early_stopping) == ("case3", "dynamic", 3)
    assert (len(options.data), options.chat_format) == (5, "codefuse")
    assert recipe.adapters == ()
    assert recipe.merge.qlora_base == "auto"


@pytest.mark.parametrize("name", ["codefuse-deepseek-33b-a10", "qwen2.5-coder-32b-a100"])
def test_a_float_engine_is_left_out_where_it_does_not_fit(tmp_path: Path, name: str) -> None:
    recipe = read_recipe(find_recipe(name).path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[recipe.model]))
    assert recipe.build is not None
    engine = recipe.build.build_options(tmp_path).model_dump()
    assert any("are needed" in reason for reason in plan_engine(tmp_path, PlanOptions(**engine, bits=16)).refusals)


@pytest.mark.parametrize(
    ("model", "gpu", "group", "float_engine"),
    [
        ("Qwen/Qwen2.5-Coder-7B-Instruct", "l4", 128, True),
        ("deepseek-ai/deepseek-coder-33b-base", "a10", 128, False),
        (DEMO_MODEL, "cpu", 64, True),
        (DEMO_MODEL, "a100-80g", 64, True),
    ],
)
def test_init_writes_a_recipe_that_fits(
    tmp_path: Path, run_qtk, model: str, gpu: str, group: int, float_engine: bool
) -> None:
    place = tmp_path / "some-model"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(CONFIGS[model]))
    done = run_qtk("recipe", "init", place, "--gpu", gpu, "--adapter", "./mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    file = tmp_path / f"some-model-{gpu}.yaml"
    recipe = read_recipe(file)
    assert (recipe.name, recipe.model, recipe.adapters) == (f"some-model-{gpu}", "./some-model", ("./mine",))
    assert recipe.quantize is not None
    assert recipe.build is not None
    assert (recipe.quantize.group_size, recipe.build.gpu, recipe.build.float_engine) == (group, gpu, float_engine)
    engine = recipe.build.build_options(tmp_path).model_dump()
    assert plan_engine(place, PlanOptions(**engine, bits=4, group_size=group)).refusals == []
    assert (tmp_path / "recipe.schema.json").is_file()
    again = run_qtk("recipe", "init", place, "--gpu", gpu, cwd=tmp_path)
    assert (again.returncode, "exists already" in again.stderr) == (2, True)


def test_init_stays_within_a_short_context(tmp_path: Path, run_qtk) -> None:
    config = {**CONFIGS[DEMO_MODEL], "max_position_embeddings": 300}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert run_qtk("recipe", "init", tmp_path, tmp_path / "short.yaml").returncode == 0
    recipe = read_recipe(tmp_path / "short.yaml")
    assert recipe.build is not None
    assert recipe.bench.divergence is not None
    assert recipe.bench.latency is not None
    assert (recipe.build.max_input_len or 0) + (recipe.build.max_output_len or 0) <= 300
    assert (recipe.bench.divergence.seq_len, recipe.bench.latency.shapes) == (300, "16/8,64/32")


def test_init_refuses_what_does_not_fit(tmp_path: Path, run_qtk) -> None:
    config = {**CONFIGS["Qwen/Qwen2.5-Coder-32B-Instruct"], "num_hidden_layers": 200}
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused = run_qtk("recipe", "init", tmp_path, "--gpu", "a10", cwd=tmp_path)
    assert (refused.returncode, "GiB are needed" in refused.stderr) == (3, True)
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"bits": 4}}))
    refused = run_qtk("recipe", "init", tmp_path, "--gpu", "a10", cwd=tmp_path)
    assert (refused.returncode, "quantized already" in refused.stderr) == (2, True)
    (tmp_path / "config.json").write_text('{"architectures": ["OddForCausalLM"]}')
    assert "qtk knows LlamaForCausalLM" in run_qtk("recipe", "init", tmp_path, cwd=tmp_path).stderr
    assert "not the id of a model" in run_qtk("recipe", "init", "nothing", cwd=tmp_path).stderr
    assert not list(tmp_path.glob("*.yaml"))
