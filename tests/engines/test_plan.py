"""Memory tables and bandwidth bounds: counted against real files, and for the 33B case that qtk is for."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from support.tiny_models import TINY

from qtk.engines.build import build_engine
from qtk.engines.memory import model_bytes
from qtk.engines.options import BuildOptions, PlanOptions
from qtk.engines.plan import plan_engine
from qtk.errors import InputError
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.scheme_model import LinearScheme
from qtk.targets.gpu import gpu_names

DEEPSEEK_CODER_33B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 7168,
    "intermediate_size": 19200,
    "num_hidden_layers": 62,
    "num_attention_heads": 56,
    "num_key_value_heads": 8,
    "vocab_size": 32256,
    "max_position_embeddings": 16384,
    "rope_scaling": {"type": "linear", "factor": 4.0},
    "rope_theta": 100000,
}


@pytest.fixture
def deepseek(tmp_path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_CODER_33B))
    return tmp_path


def test_deepseek_33b_on_an_a10(deepseek) -> None:
    plan = plan_engine(deepseek, PlanOptions(gpu="a10", bits=4, group_size=128))
    assert plan.memory.fits
    assert plan.parameters == pytest.approx(33.34e9, rel=0.001)
    # Published for this card: 20.5 to 21.7 tokens/s, so the bound must lie above, and not far.
    assert 30 < plan.memory.decode_bound_tokens_per_s < 36
    cache = next(part for part in plan.memory.parts if part.name == "cache")
    assert cache.bytes == 62 * 2 * 8 * 128 * 2 * 1536
    assert not plan_engine(deepseek, PlanOptions(gpu="a10")).memory.fits, "in float16"
    assert not plan_engine(deepseek, PlanOptions(gpu="a10", bits=4, max_batch_size=32)).memory.fits


@pytest.mark.parametrize("variant", ["llama", "llama-tied", "qwen2"])
def test_weights_are_counted_as_they_are_stored(tiny, tmp_path, variant: str, write_quantized) -> None:
    int4 = write_quantized(tiny(variant), tmp_path / variant, "gptq", LinearScheme(4, 32, True))
    weights = ModelWeights.open(int4)
    names = [n for n in weights.checkpoint.names if not n.endswith(("qzeros", "g_idx"))]
    stored = sum(weights.checkpoint.info(name).nbytes for name in names)
    final_norm = weights.spec.hidden_size * 2
    assert model_bytes(weights.spec, weights.scheme).total == stored - final_norm


@pytest.mark.parametrize("variant", ["llama", "llama-tied"])
@pytest.mark.parametrize(
    "options",
    [{}, {"accuracy_level": 0}, {"dtype": "float16"}, {"lm_head_bits": "8"}],
    ids=lambda options: str(options),
)
@pytest.mark.parametrize("quantized", [False, True])
def test_a_processors_plan_counts_what_build_engine_writes(
    tiny, tmp_path, variant: str, options: dict, quantized: bool, write_quantized
) -> None:
    model = tiny(variant)
    if quantized:
        model = write_quantized(model, tmp_path / "int4", "gptq", LinearScheme(4, 32, True))
    plan = plan_engine(model, PlanOptions(**options))
    built = build_engine(model, tmp_path / "engine", BuildOptions(**options))
    weights = next(part for part in plan.memory.parts if part.name == "weights")
    graph = onnx.load(tmp_path / "engine" / "model.onnx", load_external_data=False).graph
    stored = {
        tensor.name: int(entry.value)
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "length"
    }
    written = sum(size for name, size in stored.items() if not name.startswith("rope."))
    assert weights.bytes == pytest.approx(written, rel=0.01)
    assert quantized or plan.weights == built.dtype


def test_plan_command(deepseek, tiny, run_qtk) -> None:
    done = run_qtk("plan", deepseek, "--gpu", "a10", "--bits", "4")
    assert done.returncode == 0
    assert "fits" in done.stdout
    refused = run_qtk("plan", deepseek, "--gpu", "l4", "--json")
    assert refused.returncode == 3
    assert json.loads(refused.stdout)["memory"]["fits"] is False
    assert "GiB are needed" in refused.stderr
    assert json.loads(run_qtk("plan", tiny(), "--gpu", "a10", "--json").stdout)["weights"] == "float16"


def reasons(model: Path, backend: str, **options: int) -> str:
    return " ".join(plan_engine(model, PlanOptions(gpu="a10", backend=backend, **options)).refusals)


@pytest.mark.parametrize(
    ("variant", "backend", "options", "sentence"),
    [
        ("qwen3", "tensorrt-llm", {}, "Qwen3ForCausalLM"),
        ("mistral-window", "tensorrt-llm", {}, "16 tokens, so prompt and output must stay within it"),
        ("mistral-window", "tensorrt-edgellm", {}, "16 tokens, so prompt and output must stay within it"),
        ("llama", "tensorrt-edgellm", {}, "the model is not quantized"),
        ("llama", "tensorrt-llm", {"tp": 3}, "--tp 3 does not divide 4 attention heads"),
        ("llama", "tensorrt", {"tp": 2}, "--tp and --pp are for --backend tensorrt-llm"),
    ],
)
def test_what_a_backend_cannot_take_is_said_before_work(tiny, variant, backend, options, sentence) -> None:
    assert sentence in reasons(tiny(variant), backend, **options)


def test_several_gpus_hold_what_one_cannot(deepseek) -> None:
    assert "2 x NVIDIA A10 have" in reasons(deepseek, "tensorrt-llm", tp=2)
    assert reasons(deepseek, "tensorrt-llm", tp=4) == "", "in float16 four of them hold it"


def test_bits_and_groups_are_named_as_in_quantize(deepseek, run_qtk) -> None:
    def weights(*words: str) -> str:
        return json.loads(run_qtk("plan", deepseek, "--gpu", "a10", *words, "--json").stdout)["weights"]

    assert weights("--bits", "4") == "INT4 group 128", "the largest group that divides every layer"
    assert weights("--bits", "4", "--group-size", "64") == "INT4 group 64"
    assert weights("--bits", "8", "--group-size", "auto") == "INT8 group 128"
    assert weights("--bits", "16") == "float16"


def test_asymmetric_weights_are_refused_where_the_backend_takes_none(deepseek, run_qtk) -> None:
    done = run_qtk("plan", deepseek, "--gpu", "a10", "--bits", "4", "--asym")
    assert done.returncode == 3
    assert "TensorRT-RTX takes symmetric weights only" in done.stderr


@pytest.mark.parametrize(("old", "new"), [("--symmetric", "--sym"), ("--no-symmetric", "--asym")])
def test_old_spellings_answer_with_the_new_ones(deepseek, run_qtk, old: str, new: str) -> None:
    done = run_qtk("plan", deepseek, "--gpu", "a10", "--bits", "4", old)
    assert f"qtk: {old} is now {new}." in done.stderr
    assert ("takes symmetric weights only" in done.stderr) == (new == "--asym")


@pytest.mark.parametrize(
    ("words", "sentence"), [(("--bits", "5"), "5 bits are not"), (("--group-size", "0"), "group size 0")]
)
def test_impossible_settings_are_named(deepseek, run_qtk, words: tuple[str, str], sentence: str) -> None:
    done = run_qtk("plan", deepseek, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr


def test_an_engine_is_not_planned_as_a_model(tiny, tmp_path, run_qtk) -> None:
    build_engine(tiny(), tmp_path / "engine", BuildOptions(max_input_len=32, max_output_len=8))
    done = run_qtk("plan", tmp_path / "engine")
    assert (done.returncode, done.stdout) == (2, "")
    assert "is an engine, and `qtk plan` takes the model that an engine is built from" in done.stderr


def test_impossible_plans(deepseek) -> None:
    with pytest.raises(InputError, match="does not divide"):
        plan_engine(deepseek, PlanOptions(gpu="a10", bits=4, group_size=96))
    with pytest.raises(InputError, match="context is 16384"):
        plan_engine(deepseek, PlanOptions(gpu="a10", max_input_len=16384, max_output_len=1))
    (deepseek / "config.json").write_text(json.dumps({**TINY, "architectures": ["Mamba"]}))
    with pytest.raises(InputError, match="Mamba"):
        plan_engine(deepseek, PlanOptions(gpu="a10"))


def test_several_gpus_are_one_table(deepseek, run_qtk) -> None:
    done = run_qtk("plan", deepseek, "--bits", "4", "--gpu", "a10", "--gpu", "rtx5060", "--json")
    assert done.returncode == 0, "one of them can have it"
    found = json.loads(done.stdout)
    assert {plan["gpu"]: plan["memory"]["fits"] for plan in found["plans"]} == {"a10": True, "rtx5060": False}
    shown = run_qtk("plan", deepseek, "--bits", "4", "--gpu", "a10", "--gpu", "rtx5060", env={"COLUMNS": "80"}).stdout
    assert "18.4 GiB" in shown
    assert "not rtx5060: 18.4 GiB are needed" in shown
    assert run_qtk("plan", deepseek, "--gpu", "l4", "--gpu", "a10").returncode == 3, "in float16 none can"


def test_all_is_every_gpu_that_qtk_knows(deepseek, run_qtk) -> None:
    found = json.loads(run_qtk("plan", deepseek, "--bits", "4", "--gpu", "all", "--json").stdout)["plans"]
    assert [plan["gpu"] for plan in found] == [name for name in gpu_names() if name != "cpu"]
    split = json.loads(
        run_qtk("plan", deepseek, "--gpu", "l4", "--backend", "tensorrt-llm", "--tp", "4", "--json").stdout
    )
    assert (split["gpus"], split["refusals"]) == (4, [])


def test_a_plan_ends_with_the_command_that_comes_next(deepseek, tiny, run_qtk) -> None:
    def last(*words: object) -> str:
        return run_qtk("plan", *words).stdout.splitlines()[-1]

    assert last(deepseek, "--bits", "4", "--gpu", "a10") == f"Next: qtk quantize {deepseek} -o int4 --gpu a10"
    assert (
        last(tiny(), "--backend", "onnxruntime")
        == f"Next: qtk quantize {tiny()} -o int4 --gpu cpu --backend onnxruntime"
    )
    assert "Next" not in last(deepseek, "--gpu", "l4")


def test_a_group_that_does_not_divide_is_answered_with_one_that_does(deepseek, run_qtk) -> None:
    sizes = {"hidden_size": 7232, "num_attention_heads": 113, "num_key_value_heads": 113}  # 7232 = 113 x 64
    (deepseek / "config.json").write_text(json.dumps({**DEEPSEEK_CODER_33B, **sizes}))
    done = run_qtk("plan", deepseek, "--gpu", "a10", "--bits", "4", "--group-size", "128")
    assert done.returncode == 2
    assert "--group-size 64 divides them all" in done.stderr
