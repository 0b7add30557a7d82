"""What no engine can be made of, and engines that this machine is not for: a sentence, the right exit code, nothing left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qtk.engines.build import build_engine
from qtk.engines.description import EngineDescription, EngineLimits, Stage
from qtk.engines.options import BuildOptions
from qtk.engines.sessions.session import DecoderSession
from qtk.errors import InputError, MachineError
from qtk.machine import package_versions
from qtk.quantization.scheme_model import LinearScheme


def compiled(out: Path, **changes: object) -> Path:
    """The directory of a plan for SM86 as far as it is looked at before the plan is loaded."""
    out.mkdir()
    (out / "stage0.plan").write_bytes(b"plan")
    library = "tensorrt-rtx-cu13"
    settings: dict = {
        "architecture": "LlamaForCausalLM",
        "backend": "tensorrt",
        "gpu": "a10",
        "compute_capability": "8.6",
        "dtype": "float16",
        "lm_head_bits": 16,
        "limits": EngineLimits(max_batch=1, max_input_len=64, max_output_len=32, max_positions=96),
        "cache_length": 128,
        "vocab_size": 320,
        "hidden_size": 128,
        "num_layers": 1,
        "num_kv_heads": 2,
        "head_dim": 32,
        "windows": (None,),
        "stop_tokens": (1,),
        "stages": (Stage(file="stage0.plan", layers=(0, 1), inputs=(), outputs=(), bytes=4),),
        "versions": package_versions(library) or {library: "1.7.1"},
    }
    EngineDescription(**{**settings, **changes}).save(out)
    return out


def test_a_plan_for_another_gpu_or_by_another_version_says_both(tmp_path, pretend_gpu, run_qtk) -> None:
    engine = compiled(tmp_path / "engine", versions={"tensorrt-rtx-cu13": "0.0.1"})
    done = run_qtk("bench", "latency", engine)
    assert (done.returncode, done.stdout) == (4, "")
    assert "compiled for a GPU of SM 8.6; GPUs here: none" in done.stderr
    pretend_gpu("8.9")
    with pytest.raises(MachineError, match=r"GPUs here: NVIDIA A10 \(8\.9\)") as caught:
        DecoderSession.open(engine)
    installed = package_versions("tensorrt-rtx-cu13")
    expected = (
        "compiled by tensorrt-rtx-cu13 0.0.1, and this machine has"
        if installed
        else "tensorrt-rtx-cu13 is not installed"
    )
    assert expected in str(caught.value)


def test_a_model_too_large_for_its_gpu_comes_with_the_table(tiny, tmp_path, run_qtk, write_quantized) -> None:
    """A cache for five million rows, in place of a model that would fill a disk."""
    model = write_quantized(tiny(), tmp_path / "int4", "gptq", LinearScheme(4, 64, True))
    done = run_qtk("build-engine", model, "-o", tmp_path / "engine", "--gpu", "l4", "--max-batch-size", "5000000")
    assert done.returncode == 2
    with pytest.raises(InputError) as caught:
        options = BuildOptions(gpu="l4", max_batch_size=5_000_000, backend="tensorrt-llm", prepare_only=True)
        build_engine(model, tmp_path / "engine", options)
    for said in (done.stderr, str(caught.value)):
        assert "NVIDIA L4 has 22.5 GiB" in said
        for part in ("weights:", "cache:", "activations:", "workspace:", "logits:", "reserve:"):
            assert part in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int4"]


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({"quant_method": "hqq", "bits": 4}, ["hqq"]),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, ["bitsandbytes"]),
        ({"quant_method": "gptq", "bits": 3, "group_size": 64, "sym": True}, ["3"]),
    ],
)
def test_another_tool_s_container_that_is_not_read(tiny, tmp_path, quantization: dict, words: list[str]) -> None:
    model = shutil.copytree(tiny(), tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    for gpu in ("cpu", "a10"):
        with pytest.raises(InputError) as caught:
            build_engine(model, tmp_path / "engine", BuildOptions(gpu=gpu))
        assert all(word in str(caught.value) for word in words), str(caught.value)
        assert str(model) in str(caught.value)
        assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize("container", ["gptq", "awq", "modelopt", "compressed-tensors"])
def test_every_container_that_is_read_becomes_an_engine(tiny, tmp_path, container: str, write_quantized) -> None:
    model = write_quantized(tiny(), tmp_path / "int4", container, LinearScheme(4, 64, True))
    description = build_engine(model, tmp_path / "engine", BuildOptions())
    assert description.quantization is not None
    assert (description.quantization.bits, description.quantization.group_size) == (4, 64)


@pytest.mark.parametrize(
    "options",
    [
        {"gpu": "a10"},
        {"gpu": "a10", "backend": "tensorrt-llm", "prepare_only": True},
        {"gpu": "a10", "backend": "tensorrt-edgellm", "prepare_only": True},
        {"gpu": "cpu"},
    ],
    ids=lambda options: f"{options['gpu']}-{options.get('backend', 'auto')}",
)
def test_another_tool_s_act_order_and_zero_points_are_refused_before_work(
    tiny, tmp_path, options: dict, write_quantized
) -> None:
    """What AutoGPTQ wrote with desc_act, and a file whose sym: true is not so: a sentence, not a crash in the middle."""
    from safetensors.torch import load_file, save_file

    model = write_quantized(tiny(), tmp_path / "int4", "gptq", LinearScheme(4, 64, True))
    tensors = load_file(model / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"]["desc_act"] = True
    (model / "config.json").write_text(json.dumps(config))
    build = lambda: build_engine(model, tmp_path / "engine", BuildOptions(max_input_len=32, **options))  # noqa: E731
    if options["gpu"] == "cpu":
        build()  # desc_act with static groups: nothing is reordered in the file
        shutil.rmtree(tmp_path / "engine")
    name = "model.layers.2.mlp.down_proj"
    reordered = {**tensors, f"{name}.g_idx": tensors[f"{name}.g_idx"].flip(0).contiguous()}
    save_file(reordered, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="does not take act-order"):
        build()
    config["quantization_config"]["desc_act"] = False
    (model / "config.json").write_text(json.dumps(config))
    odd = {**tensors, f"{name}.qzeros": tensors[f"{name}.qzeros"] - 1}
    save_file(odd, model / "model.safetensors", metadata={"format": "pt"})
    if options["gpu"] == "cpu":
        build()  # ONNX Runtime takes zero points, and they are read as they are
        return
    with pytest.raises(
        InputError, match=r"says sym: true, but model\.layers\.2\.mlp\.down_proj have other zero points"
    ):
        build()
    assert not (tmp_path / "engine").exists()
