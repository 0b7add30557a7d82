"""TensorRT Edge-LLM: what is prepared for it, the driver of its exporter, and NVIDIA's exporter itself as the judge."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qtk.checkpoint.manifest import verify_chain
from qtk.engines.build import build_engine
from qtk.engines.description import read_description
from qtk.engines.edgellm.export import check_export
from qtk.engines.options import BuildOptions
from qtk.errors import InputError, MachineError
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.scheme_model import LinearScheme

SIZES = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_hidden_layers": 2}


@pytest.fixture(scope="session")
def int4(make_tiny, write_byte_tokenizer, write_quantized):

    def int4_of(base: Path, variant: str, container: str, scheme: LinearScheme) -> Path:
        source = make_tiny(base / "float", variant, **SIZES)
        write_byte_tokenizer(source)
        return write_quantized(source, base / "int4", container, scheme)

    return int4_of


def prepare(model: Path, out: Path, tools: Path | None, **options) -> Path:
    settings = {"gpu": "a10", "backend": "tensorrt-edgellm", "prepare_only": True, "edgellm_bin": tools}
    build_engine(model, out, BuildOptions(**{**settings, "max_input_len": 64, "max_output_len": 32, **options}))
    return out


# Writes the graph that the exporter would, or, by its mode, one that differs in one thing. The codes' layout is written as the
# kernel's threads read it, word by word.
STAND_IN = """#!{python}
import json, pathlib, sys, numpy as np, onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file
mode = "{mode}"
print("exporting", sys.argv[1:], flush=True)
if mode == "fail":
    sys.exit("ValueError: projection is not 64-aligned")

def fragments(codes):
    n, k = codes.shape
    whole = np.full((-(-n // 128) * 128, -(-k // 64) * 64), 8, np.uint32)
    whole[:n, :k] = codes
    rows, columns = whole.shape
    nb, kt, kbl, half, t = np.ix_(range(0, rows, 128), range(0, columns, 64), range(4), range(2), range(128))
    row, column = nb + 64 * half + t // 4, kt + 16 * kbl + 2 * (t % 4)
    nibbles = [whole[row + 32 * hi, column + 8 * up + one] for one in (0, 1) for hi in (0, 1) for up in (0, 1)]
    words = sum(x << np.uint32(4 * i) for i, x in enumerate(nibbles))
    return words.reshape(-1).view(np.int8).reshape(-1, 512)

config = json.loads(pathlib.Path("checkpoint/config.json").read_text())
heads, kv, dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
stored, nodes, kept, caches = load_file("checkpoint/model.safetensors"), [], [], []
for name in sorted(stored):
    if name.endswith(".weight_scale"):
        module = name.removesuffix(".weight_scale")
        packed, scales = stored[module + ".weight"], stored[name].astype(np.float16).T.copy()
        codes = np.empty((packed.shape[0] * 2, packed.shape[1]), np.uint8)
        codes[0::2], codes[1::2] = packed & 15, packed >> 4
        codes ^= 8
        chosen = module.endswith("1.mlp.down_proj")
        if mode == "order" and chosen:
            codes = codes[:, ::-1]
        if mode == "wrong" and chosen:
            codes[0, 0] ^= 1
        if mode == "scales" and chosen:
            scales[0, 0] *= 2
        if mode == "missing" and chosen:
            continue
        n, k = codes.shape
        group = k // scales.shape[0]
        if mode == "group" and chosen:
            group *= 2
        kept += [
            numpy_helper.from_array(fragments(codes), "_m." + module + ".weight"),
            numpy_helper.from_array(scales, "_m." + module + ".weight_scale"),
        ]
        names = ["x", "_m." + module + ".weight", "_m." + module + ".weight_scale"]
        nodes.append(helper.make_node(
            "Int4GroupwiseGemmPluginV2", names, [module], domain="trt_edgellm",
            gemm_n=n, gemm_k=k + 64 * (mode == "size" and chosen), group_size=group))
        if mode == "stray" and chosen:
            kept.append(numpy_helper.from_array(fragments(codes), "_m.extra.weight"))
            nodes.append(helper.make_node(
                "Int4GroupwiseGemmPluginV2", ["x", "_m.extra.weight", names[2]], ["extra"], domain="trt_edgellm"))
        if module.endswith("o_proj") and not (mode == "attention" and module.endswith("layers.1.self_attn.o_proj")):
            nodes.append(helper.make_node(
                "AttentionPlugin", ["x"], [module + ".a"], domain="trt_edgellm", num_q_heads=heads,
                num_kv_heads=kv + (mode == "heads"), head_size=dim, enable_fp8_kv_cache=0, sliding_window_size=-1))
        if module.endswith("o_proj"):
            kind = TensorProto.FLOAT if mode == "cache" else TensorProto.FLOAT16
            caches.append(helper.make_tensor_value_info(
                "past_key_values_%d" % len(caches), kind, [2, "pages", 128, kv, dim]))
x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", 4])
positions = helper.make_tensor_value_info("positions", TensorProto.INT32, ["n"])
graph = helper.make_graph(nodes, "m", [x, positions, *caches], [x], kept)
out = pathlib.Path(sys.argv[-1]) / "llm"
out.mkdir(parents=True)
onnx.save(helper.make_model(graph), out / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0)
rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or dict())
theta = rope.pop("rope_theta", None) or config.get("rope_theta")
if mode == "rope":
    rope["factor"] = 2.0
sizes = dict((key, config[key]) for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"))
(out / "config.json").write_text(json.dumps(dict(
    sizes, num_key_value_heads=kv, head_dim=dim, kv_cache_dtype="fp16", rope_theta=theta, rope_scaling=rope or None)))
"""


@pytest.fixture
def stand_in(tmp_path):
    """stand_in("wrong") -> a directory with an executable tensorrt-edgellm-export that behaves so."""

    def make(mode: str) -> Path:
        tools = tmp_path / "tools"
        tools.mkdir()
        tool = tools / "tensorrt-edgellm-export"
        tool.write_text(STAND_IN.format(python=sys.executable, mode=mode))
        tool.chmod(0o755)
        return tools

    return make


def test_the_prepared_directory_holds_all_and_says_the_command(stand_in, tmp_path, int4) -> None:
    model = int4(tmp_path, "llama", "gptq", LinearScheme(4, 64, True))
    out = prepare(model, tmp_path / "out", stand_in("good"), max_batch_size=2)
    described = read_description(out)
    assert not described.built
    assert described.stages[0].file == "onnx/llm/model.onnx"
    command = "tensorrt-edgellm-build --model-dir checkpoint --engine-dir engine --max-batch-size 2 --max-input-len 64"
    assert described.notes[0].endswith("qtk build-engine out -o out-built")
    assert f"{command} --max-kv-cache-capacity 96" in described.notes[1]
    assert "'--target-sm', '86'" in (out / "tensorrt-edgellm-export.log").read_text()
    inside = ModelWeights.open(out / "checkpoint")
    assert inside.format is not None
    assert inside.format.name == "modelopt"
    assert json.loads((out / "checkpoint" / "hf_quant_config.json").read_text())["quantization"]["group_size"] == 64


BUILDER = """#!/bin/sh
echo building "$@"
test -f checkpoint/hf_quant_config.json || exit 5
mkdir -p engine
[ {mode} = empty ] || echo plan > engine/llm.engine
[ {mode} != fail ] || {{ echo "no kernel image is available" >&2; exit 7; }}
"""


@pytest.mark.parametrize(
    ("mode", "words"), [("good", None), ("fail", ["exit code 7", "no kernel image"]), ("empty", ["left no engine"])]
)
def test_where_a_gpu_is_the_builder_is_run(
    stand_in, pretend_gpu, tmp_path, mode: str, words: list[str] | None, int4
) -> None:
    pretend_gpu("8.6")
    tools = stand_in("good")
    (tools / "tensorrt-edgellm-build").write_text(BUILDER.format(mode=mode))
    (tools / "tensorrt-edgellm-build").chmod(0o755)
    model = int4(tmp_path, "llama", "gptq", LinearScheme(4, 64, True))
    if words is None:
        out = prepare(model, tmp_path / "out", tools, prepare_only=False)
        described = read_description(out)
        assert described.built
        assert described.stages[0].file == "engine/llm.engine"
        assert "never run by qtk" in described.notes[0]
        log = (out / "tensorrt-edgellm-build.log").read_text()
        assert "--max-input-len 64 --max-kv-cache-capacity 96" in log
        return
    with pytest.raises(MachineError) as caught:
        prepare(model, tmp_path / "out", tools, prepare_only=False)
    assert all(word in str(caught.value) for word in words)
    assert not (tmp_path / "out").exists()


def test_what_was_prepared_is_built_on_the_target_by_one_command(stand_in, pretend_gpu, tmp_path, int4) -> None:
    tools = stand_in("good")
    out = prepare(int4(tmp_path, "llama", "gptq", LinearScheme(4, 64, True)), tmp_path / "out", tools)
    (tools / "tensorrt-edgellm-build").write_text(BUILDER.format(mode="good"))
    (tools / "tensorrt-edgellm-build").chmod(0o755)
    here = BuildOptions(edgellm_bin=tools)
    with pytest.raises(MachineError, match=r"NVIDIA A10 is SM 8\.6; GPUs here: none"):
        build_engine(out, tmp_path / "engine", here)
    pretend_gpu("12.0")
    with pytest.raises(MachineError, match=r"GPUs here: NVIDIA A10 \(12\.0\)"):
        build_engine(out, tmp_path / "engine", here)
    pretend_gpu("8.6")
    build_engine(out, tmp_path / "engine", here)
    described = read_description(tmp_path / "engine")
    assert (described.built, described.stages[0].file) == (True, "engine/llm.engine")
    assert "--max-input-len 64" in (tmp_path / "engine" / "tensorrt-edgellm-build.log").read_text()
    assert (tmp_path / "engine" / "checkpoint" / "hf_quant_config.json").is_file()
    assert not [finding for finding in verify_chain(tmp_path / "engine") if finding.bad]


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("wrong", r"layers\.1\.mlp\.down_proj: other codes"),
        ("order", r"layers\.1\.mlp\.down_proj: other codes"),
        ("scales", r"layers\.1\.mlp\.down_proj: other scales"),
        ("missing", r"layers\.1\.mlp\.down_proj: no Int4GroupwiseGemmPluginV2 node"),
        ("size", r"layers\.1\.mlp\.down_proj: sizes 256 x 576"),
        ("group", r"layers\.1\.mlp\.down_proj: group 128, not 64"),
        ("stray", r"extra: an INT4 node that does not belong to a linear"),
        ("attention", r"1 attention nodes for 2 layers"),
        ("heads", r"attention node 0: num_kv_heads 3, not 2"),
        ("cache", r"past_key_values_0: FLOAT \["),
        ("rope", r"config\.json: rope .*'factor': 2\.0"),
    ],
)
def test_what_differs_from_our_weights_is_found(stand_in, models, tmp_path, mode: str, words: str) -> None:
    """Permuted codes among them: their counts are the same."""
    with pytest.raises(MachineError, match=words):
        prepare(models, tmp_path / "out", stand_in(mode))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def models(tmp_path_factory, int4) -> Path:
    """A model whose rope is scaled, made once."""
    return int4(tmp_path_factory.mktemp("edgellm"), "llama-linear-rope", "gptq", LinearScheme(4, 64, True))


def test_a_failed_export_keeps_its_log(stand_in, tmp_path, int4) -> None:
    model = int4(tmp_path, "llama", "gptq", LinearScheme(4, 64, True))
    with pytest.raises(MachineError, match="not 64-aligned"):
        prepare(model, tmp_path / "out", stand_in("fail"))
    assert "exporting" in (tmp_path / "out.tensorrt-edgellm-export.log").read_text()
    assert not (tmp_path / "out").exists()


def test_what_it_cannot_take_is_refused_before_work(stand_in, tiny, tmp_path, int4, make_tiny, write_quantized) -> None:
    tools = stand_in("good")
    with pytest.raises(InputError, match="symmetric weights only"):
        prepare(int4(tmp_path / "a", "llama", "gptq", LinearScheme(4, 64, False)), tmp_path / "out", tools)
    with pytest.raises(InputError, match="not 32"):
        prepare(int4(tmp_path / "b", "llama", "gptq", LinearScheme(4, 32, True)), tmp_path / "out", tools)
    with pytest.raises(InputError, match="not quantized"):
        prepare(tiny("llama"), tmp_path / "out", tools)
    source = make_tiny(tmp_path / "c", "mistral-window", **SIZES)
    overrides = {"model.layers.1.mlp.up_proj": LinearScheme(16, 64, True), "lm_head": LinearScheme(4, 64, True)}
    mixed = write_quantized(source, tmp_path / "mixed", "gptq", LinearScheme(4, 64, True), overrides)
    with pytest.raises(InputError) as caught:
        prepare(mixed, tmp_path / "out", tools)
    for words in ("layers.1.mlp.up_proj in float", "lm_head is quantized", "this model's is 16 tokens"):
        assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_the_machine_lacks_is_said(stand_in, tmp_path, int4) -> None:
    model = int4(tmp_path, "llama", "gptq", LinearScheme(4, 64, True))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MachineError, match="--edgellm-bin"):
        prepare(model, tmp_path / "out", tmp_path / "empty")
    with pytest.raises(MachineError, match="--prepare-only"):
        prepare(model, tmp_path / "out", stand_in("good"), prepare_only=False)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="session")
def export_and_check(owners_python):
    """The checkpoint through NVIDIA's own exporter, held against our weights. Returns the graph."""

    def export_and_check_of(model: Path, out: Path) -> Path:
        tool = Path(owners_python("edgellm")).with_name("tensorrt-edgellm-export")
        done = subprocess.run(
            [tool, "--target-sm", "86", model, out],
            capture_output=True,
            text=True,
            timeout=580,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        graph = out / "llm" / "model.onnx"
        check_export(graph, ModelWeights.open(model))
        return graph

    return export_and_check_of


# Slow, like the test of the backend below, because each call of the exporter loads its libraries anew. `make edgellm-test` runs
# that one alone, and so does continuous integration.
@pytest.mark.slow
@pytest.mark.parametrize(("variant", "container", "group"), [("llama", "gptq", 128), ("qwen2", "gptq", 64)])
def test_nvidia_s_exporter_reads_what_we_mean(
    tmp_path, variant: str, container: str, group: int, export_and_check, int4
) -> None:
    export_and_check(int4(tmp_path, variant, container, LinearScheme(4, group, True)), tmp_path / "out")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nvidia_s_exporter_reads_smollm2(smollm2, tmp_path, export_and_check, write_quantized) -> None:
    model = write_quantized(smollm2, tmp_path / "int4", "gptq", LinearScheme(4, 64, True))
    graph = export_and_check(model, tmp_path / "out")
    # Codes, scales and the fp16 head of a tied embedding.
    assert 100e6 < graph.with_name("model.onnx.data").stat().st_size < 135e6


@pytest.mark.slow
def test_the_backend_gives_nvidia_s_exporter_a_modelopt_checkpoint(tmp_path, int4, owners_python) -> None:
    """From end to end with the real exporter: what `build-engine --prepare-only` leaves was read back and compared."""
    tools = Path(owners_python("edgellm")).parent
    model = int4(tmp_path, "llama", "gptq", LinearScheme(4, 128, True))
    out = prepare(model, tmp_path / "out", tools)
    inside = ModelWeights.open(out / "checkpoint")
    assert inside.format is not None
    assert inside.format.name == "modelopt"
