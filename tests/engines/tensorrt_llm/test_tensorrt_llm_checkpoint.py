"""TensorRT-LLM: the checkpoint read back by a reader of the documented layout, and the driver of trtllm-build.

The reader shares no code with the writer: it knows the names, the orientation and the nibbles from the documentation.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qtk.checkpoint.manifest import verify_chain
from qtk.engines.build import build_engine
from qtk.engines.description import EngineLimits, read_description
from qtk.engines.memory import memory_refusals, memory_table
from qtk.engines.options import BuildOptions
from qtk.errors import InputError, MachineError
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.scheme_model import LinearScheme, QuantizationScheme
from qtk.targets.gpu import gpu_profile

# Sizes whose quarter is a multiple of 64; a vocabulary that neither 64 nor 4 divides; fewer key/value heads than ranks.
SIZES = {
    "vocab_size": 322,
    "hidden_size": 256,
    "intermediate_size": 512,
    "head_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GROUP_64 = LinearScheme(4, 64, True)


@pytest.fixture(scope="module")
def int4(tmp_path_factory, make_tiny, write_byte_tokenizer, write_quantized):
    """int4("qwen2") -> an INT4 checkpoint of group 64 whose sizes divide over four ranks, made once."""
    base = tmp_path_factory.mktemp("trtllm")

    def get(variant: str = "llama", scheme: LinearScheme = GROUP_64) -> Path:
        out = base / f"{variant}-{scheme.group_size}-{scheme.symmetric}"
        if not out.is_dir():
            source = base / f"{variant}-float"
            if not source.is_dir():
                make_tiny(source, variant, **SIZES)
                write_byte_tokenizer(source)
            write_quantized(source, out, "gptq", scheme)
        return out

    return get


def prepare(model: Path, out: Path, **options) -> Path:
    build_engine(
        model,
        out,
        BuildOptions(
            **{
                "gpu": "a10",
                "backend": "tensorrt-llm",
                "prepare_only": True,
                "max_input_len": 64,
                "max_output_len": 32,
                **options,
            }
        ),
    )
    return out


class DocumentedReader:
    """Puts a TensorRT-LLM checkpoint back together into Hugging Face weights, by its documentation alone."""

    def __init__(self, directory: Path) -> None:
        self.config = json.loads((directory / "config.json").read_text())
        self.tp, self.pp = self.config["mapping"]["tp_size"], self.config["mapping"]["pp_size"]
        assert self.config["mapping"]["world_size"] == self.tp * self.pp
        self.files = {
            (pp, tp): load_file(directory / f"rank{pp * self.tp + tp}.safetensors")
            for pp in range(self.pp)
            for tp in range(self.tp)
        }
        assert len(list(directory.glob("rank*.safetensors"))) == self.tp * self.pp

    def matrix(self, stage: int, rank: int, name: str) -> torch.Tensor:
        """[out, in] floats of one rank's linear: two's complement nibbles, even output row low, times its group's scale."""
        tensors = self.files[stage, rank]
        stored = tensors[f"{name}.weight"]
        if stored.dtype != torch.int8:
            return stored.float()
        low, high = stored.to(torch.int32) & 15, (stored.to(torch.int32) >> 4) & 15
        rows = torch.empty(2 * stored.shape[0], stored.shape[1], dtype=torch.int32)
        rows[0::2], rows[1::2] = low, high
        signed = torch.where(rows > 7, rows - 16, rows).float()
        group = self.config["quantization"]["group_size"]
        return signed * tensors[f"{name}.weights_scaling_factor"].float().repeat_interleave(group, dim=1)

    def model(self) -> dict[str, torch.Tensor]:
        """Hugging Face name -> float tensor of the whole model."""
        c, found = self.config, {}
        per_stage = c["num_hidden_layers"] // self.pp
        ranks = range(self.tp)
        found["model.embed_tokens.weight"] = self.files[0, 0]["transformer.vocab_embedding.weight"].float()
        found["model.norm.weight"] = self.files[self.pp - 1, 0]["transformer.ln_f.weight"].float()
        for key, name in (("transformer.vocab_embedding.weight", 0), ("transformer.ln_f.weight", self.pp - 1)):
            assert all(torch.equal(self.files[name, r][key], self.files[name, 0][key]) for r in ranks), key
        head = torch.cat([self.files[self.pp - 1, r]["lm_head.weight"] for r in ranks]).float()
        assert not head[c["vocab_size"] :].any()
        found["lm_head.weight"] = head[: c["vocab_size"]]
        for layer in range(c["num_hidden_layers"]):
            stage, local = divmod(layer, per_stage)
            ours, theirs = f"model.layers.{layer}.", f"transformer.layers.{local}."
            norms = {"input_layernorm": "input_layernorm", "post_attention_layernorm": "post_layernorm"}
            for hf, trt in norms.items():
                found[f"{ours}{hf}.weight"] = self.files[stage, 0][f"{theirs}{trt}.weight"].float()
                copies = [self.files[stage, r][f"{theirs}{trt}.weight"].float() for r in ranks]
                assert all(torch.equal(copy, copies[0]) for copy in copies), f"{trt} of every rank"
            for kind in ("weight", "bias"):
                if kind == "bias" and f"{theirs}attention.qkv.bias" not in self.files[stage, 0]:
                    continue
                parts = [
                    self.qkv(
                        self.matrix(stage, r, f"{theirs}attention.qkv")
                        if kind == "weight"
                        else self.files[stage, r][f"{theirs}attention.qkv.bias"].float()
                    )
                    for r in ranks
                ]
                found[f"{ours}self_attn.q_proj.{kind}"] = torch.cat([q for q, _, _ in parts])
                found[f"{ours}self_attn.k_proj.{kind}"] = self.shared([k for _, k, _ in parts])
                found[f"{ours}self_attn.v_proj.{kind}"] = self.shared([v for _, _, v in parts])
            for hf, trt, dim in (
                ("self_attn.o_proj", "attention.dense", 1),
                ("mlp.gate_proj", "mlp.fc", 0),
                ("mlp.up_proj", "mlp.gate", 0),
                ("mlp.down_proj", "mlp.proj", 1),
            ):
                pieces = [self.matrix(stage, r, theirs + trt) for r in ranks]
                found[f"{ours}{hf}.weight"] = torch.cat(pieces, dim=dim)
        return found

    def qkv(self, stacked: torch.Tensor) -> list[torch.Tensor]:
        c = self.config
        query = c["num_attention_heads"] // self.tp * c["head_size"]
        shared = max(1, c["num_key_value_heads"] // self.tp) * c["head_size"]
        return list(stacked.split([query, shared, shared]))

    def shared(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """k or v of all ranks: side by side, or with each head once where ranks hold copies, which must be equal."""
        copies = self.tp // self.config["num_key_value_heads"]
        if copies <= 1:
            return torch.cat(parts)
        for first in range(0, self.tp, copies):
            assert all(torch.equal(parts[first], part) for part in parts[first : first + copies])
        return torch.cat(parts[::copies])


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("variant", ["llama-linear-rope", "qwen2"])
def test_the_documented_reader_finds_our_weights(int4, tmp_path, variant: str, tp: int, pp: int) -> None:
    weights = ModelWeights.open(int4(variant))
    out = prepare(int4(variant), tmp_path / "out", tp=tp, pp=pp)
    read = DocumentedReader(out / "checkpoint").model()
    expected = {
        name: weights.float_linear(name.removesuffix(".weight"), torch.float32)
        if name.endswith("_proj.weight")
        else weights.checkpoint.tensor(name).float()
        for name in weights.spec.all_tensors()
    }
    assert set(read) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(read[name], tensor), name
    described = read_description(out)
    assert not described.built
    assert len(described.stages) == tp * pp
    assert {s.layers for s in described.stages} == ({(0, 2)} if pp == 1 else {(0, 1), (1, 2)})


@pytest.mark.parametrize("variant", ["llama-tied", "mistral", "llama3-rope"])
def test_a_float_model_and_other_variants(tmp_path, variant: str, make_tiny) -> None:
    source = make_tiny(tmp_path / "float", variant, **SIZES)
    out = prepare(source, tmp_path / "out", tp=2)
    read = DocumentedReader(out / "checkpoint")
    weights = ModelWeights.open(source)
    assert read.config["quantization"]["quant_algo"] is None
    for name, tensor in read.model().items():
        stored = "model.embed_tokens.weight" if variant == "llama-tied" and name == "lm_head.weight" else name
        assert torch.equal(tensor, weights.checkpoint.tensor(stored).half().float()), name


def test_the_config_says_what_old_and_new_versions_read(int4, tmp_path) -> None:
    config = DocumentedReader(prepare(int4("llama-linear-rope"), tmp_path / "a", tp=2) / "checkpoint").config
    assert config["architecture"] == "LlamaForCausalLM"
    assert config["position_embedding_type"] == "rope_gpt_neox"
    assert config["rotary_scaling"] == {"type": "linear", "factor": 4.0}
    assert config["rotary_base"] == 100000.0
    assert config["head_size"] == 64
    assert config["vocab_size"] == 322
    # An unknown key here is a TypeError in TensorRT-LLM.
    assert config["quantization"] == {
        "quant_algo": "W4A16_AWQ",
        "kv_cache_quant_algo": None,
        "group_size": 64,
        "has_zero_point": False,
        "pre_quant_scale": False,
        "exclude_modules": ["lm_head"],
    }
    llama3 = DocumentedReader(prepare(int4("llama3-rope"), tmp_path / "c") / "checkpoint").config
    assert llama3["rotary_scaling"] == {
        "type": "llama3",
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    assert llama3["rotary_base"] == 500000.0
    qwen = DocumentedReader(prepare(int4("qwen2"), tmp_path / "b") / "checkpoint").config
    assert qwen["qwen_type"] == "qwen2"
    assert qwen["attn_bias"] is True


@pytest.mark.parametrize(("hidden", "group", "multiple"), [(320, 64, 128), (384, 128, 256)])
def test_a_hidden_size_that_the_loader_would_pad_is_refused_before_the_work(
    tmp_path, make_tiny, write_byte_tokenizer, write_quantized, hidden: int, group: int, multiple: int
) -> None:
    sizes = {**SIZES, "hidden_size": hidden, "num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64}
    make_tiny(tmp_path / "float", "llama", **sizes)
    write_byte_tokenizer(tmp_path / "float")
    model = write_quantized(tmp_path / "float", tmp_path / "int4", "gptq", LinearScheme(4, group, True))
    with pytest.raises(InputError, match=f"hidden size {hidden} is not a multiple of {multiple}"):
        prepare(model, tmp_path / "out", tp=2)
    assert not (tmp_path / "out").exists()


def test_more_ranks_than_key_value_heads_are_named_as_a_limit_of_tensorrt_llm(int4, tmp_path) -> None:
    for tp, named in ((2, False), (4, True)):
        notes = " ".join(read_description(prepare(int4(), tmp_path / str(tp), tp=tp)).notes)
        assert (f"--tp {tp} is above this model's 2 key/value heads: a limit of TensorRT-LLM itself" in notes) == named


def test_preflight_lists_every_reason(int4, tmp_path) -> None:
    cases = [
        (int4("llama", LinearScheme(4, 32, True)), {}, ["groups of 64 or 128, not 32", "--group-size 64"]),
        (int4("llama", LinearScheme(4, 64, False)), {}, ["symmetric weights only", "--sym"]),
        (int4("llama", LinearScheme(4, 128, True)), {"tp": 4}, ["[256, 64] in groups of 128", "o_proj"]),
        (int4("llama", LinearScheme(4, 64, True)), {"tp": 8}, ["hidden size 256 is not a multiple of 512"]),
        (int4("llama"), {"tp": 3}, ["4 attention heads", "2 key/value heads", "intermediate size 512"]),
        (int4("llama"), {"tp": 8, "pp": 3}, ["4 attention heads", "2 layers", "each of 8 ranks"]),
    ]
    for model, options, words in cases:
        with pytest.raises(InputError) as caught:
            prepare(model, tmp_path / "out", **options)
        for word in words:
            assert word in str(caught.value)
        assert list(tmp_path.iterdir()) == []


def test_what_a_version_or_gpu_cannot_take(int4, tiny, tmp_path) -> None:
    with pytest.raises(InputError, match=r"does not build for .*5090"):
        prepare(int4("llama"), tmp_path / "out", gpu="rtx5090")
    with pytest.raises(InputError, match="Qwen3ForCausalLM"):
        prepare(tiny("qwen3"), tmp_path / "out")
    with pytest.raises(InputError, match="window of 16"):
        prepare(tiny("mistral-window"), tmp_path / "out")
    with pytest.raises(InputError, match="one device"):
        prepare(int4("llama"), tmp_path / "out", gpu="cpu", backend="onnxruntime", tp=2)


def test_more_gpus_hold_what_one_cannot(int4) -> None:
    weights = ModelWeights.open(int4("llama"))
    spec = replace(weights.spec, num_layers=120, hidden_size=8192, intermediate_size=28672, num_heads=64, head_dim=128)
    limits = EngineLimits(max_batch=1, max_input_len=1024, max_output_len=512, max_positions=1536)
    scheme = QuantizationScheme(GROUP_64, {name: GROUP_64 for name, _ in spec.all_linears()})
    memory = memory_table(spec, scheme, limits, gpu_profile("a10"))
    assert "GiB are needed, NVIDIA A10 has" in memory_refusals(memory)[0]
    assert "2 x NVIDIA A10 have" in memory_refusals(memory, 2)[0]
    assert memory_refusals(memory, 4) == []


def test_without_the_tool_nothing_is_written_and_prepare_only_is_named(int4, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(MachineError, match="--prepare-only"):
        prepare(int4("llama"), tmp_path / "out", prepare_only=False)
    assert list(tmp_path.iterdir()) == []


def test_a_prepared_directory_says_the_command(int4, tmp_path, run_qtk) -> None:
    words = ["build-engine", int4("llama"), "-o", tmp_path / "out", "--gpu", "a10", "--backend", "tensorrt-llm"]
    done = run_qtk(*words, "--max-input-len", 100, "--max-output-len", 28, "--prepare-only", "--json")
    assert done.returncode == 0, done.stderr
    notes = " ".join(json.loads(done.stdout)["notes"])
    assert "trtllm-build --checkpoint_dir checkpoint --output_dir engine --max_batch_size 1" in notes
    assert "--max_input_len 100 --max_seq_len 128" in notes
    assert "--container modelopt" in notes


STAND_IN = """#!{python}
import json, os, pathlib, signal, sys, time
here = pathlib.Path.cwd()
if "--help" in sys.argv:
    print("usage: trtllm-build [--checkpoint_dir DIR] {flag} N")
    sys.exit(0)
print("building with", sys.argv[1:], flush=True)
mode = "{mode}"
if mode == "fail":
    print("Only group size 64 and 128 supported", file=sys.stderr)
    sys.exit(3)
if mode == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if mode == "hang":
    pathlib.Path("{mark}").write_text(str(os.getpid()))
    time.sleep(120)
config = json.loads((here / "checkpoint" / "config.json").read_text())
engine = here / "engine"
engine.mkdir()
(engine / "config.json").write_text(json.dumps({{"version": "1.1.0", "pretrained_config": config}}))
for rank in range(config["mapping"]["world_size"] - (mode == "short")):
    (engine / f"rank{{rank}}.engine").write_bytes(b"plan")
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """stand_in("fail") puts an executable called trtllm-build on PATH that behaves so; returns where it leaves its mark."""

    def make(mode: str, flag: str = "--max_seq_len") -> Path:
        tools = tmp_path / "tools"
        tools.mkdir()
        tool, mark = tools / "trtllm-build", tmp_path / "mark"
        tool.write_text(STAND_IN.format(python=sys.executable, mode=mode, flag=flag, mark=mark))
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
        return mark

    return make


def test_the_driver_passes_the_limits_and_keeps_the_log(int4, stand_in, tmp_path) -> None:
    stand_in("build")
    out = prepare(int4("llama"), tmp_path / "out", prepare_only=False, tp=2, max_batch_size=4)
    log = (out / "trtllm-build.log").read_text()
    for words in (
        "--max_batch_size', '4'",
        "--max_input_len', '64'",
        "--max_seq_len', '96'",
        "--max_num_tokens', '256'",
    ):
        assert words in log
    described = read_description(out)
    assert described.built
    assert [stage.file for stage in described.stages] == ["engine/rank0.engine", "engine/rank1.engine"]
    assert "1.1.0" in described.notes[0]


def test_what_was_prepared_is_built_by_the_command_that_was_printed(int4, stand_in, tmp_path, run_qtk) -> None:
    out = prepare(int4("llama"), tmp_path / "out", tp=2, max_batch_size=4)
    note = read_description(out).notes[0]
    assert note.endswith("qtk build-engine out -o out-built")
    stand_in("build")
    done = run_qtk("build-engine", out, "-o", f"{out}-built", "--json")
    assert done.returncode == 0, done.stderr
    described = read_description(tmp_path / "out-built")
    assert described.model_dump(mode="json", exclude={"windows"}).items() <= json.loads(done.stdout).items()
    assert (described.built, described.versions["tensorrt-llm"]) == (True, "1.1.0")
    assert [stage.file for stage in described.stages] == ["engine/rank0.engine", "engine/rank1.engine"]
    log = (tmp_path / "out-built" / "trtllm-build.log").read_text()
    assert "--max_batch_size', '4'" in log
    assert "--max_seq_len', '96'" in log
    assert (tmp_path / "out-built" / "tokenizer.json").is_file()
    assert not [finding for finding in verify_chain(tmp_path / "out-built") if finding.bad]
    assert not read_description(out).built, "the prepared directory stays as it was"


def test_another_gpu_than_the_one_asked_for_is_refused(int4, stand_in, tmp_path, pretend_gpu) -> None:
    """trtllm-build builds for the GPU that it finds, whatever qtk was told."""
    stand_in("build")
    pretend_gpu("8.9")
    with pytest.raises(MachineError, match=r"NVIDIA A10 is SM 8\.6; GPUs here: NVIDIA A10 \(8\.9\)"):
        prepare(int4("llama"), tmp_path / "out", prepare_only=False)
    assert not (tmp_path / "out").exists()


def test_an_old_version_is_given_its_own_length_flag(int4, stand_in, tmp_path) -> None:
    stand_in("build", flag="--max_output_len")
    out = prepare(int4("llama"), tmp_path / "out", prepare_only=False)
    log = (out / "trtllm-build.log").read_text()
    assert "--max_output_len', '32'" in log
    assert "--max_seq_len'" not in log


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("fail", ["exit code 3", "Only group size 64 and 128 supported"]),
        ("kill", ["killed by signal 9", "memory"]),
        ("short", ["rank1.engine"]),
    ],
)
def test_a_failure_leaves_its_log_and_no_engine(int4, stand_in, tmp_path, mode: str, words: list[str]) -> None:
    stand_in(mode)
    with pytest.raises(MachineError) as caught:
        prepare(int4("llama"), tmp_path / "out", prepare_only=False, tp=2)
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()
    if mode != "short":
        assert "building with" in (tmp_path / "out.trtllm-build.log").read_text()


def test_stopping_qtk_stops_the_tool(int4, stand_in, tmp_path) -> None:
    mark = stand_in("hang")
    words = ["build-engine", int4("llama"), "-o", tmp_path / "out", "--gpu", "a10", "--backend", "tensorrt-llm"]
    process = subprocess.Popen([sys.executable, "-m", "qtk", *map(str, words)], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while not (mark.is_file() and mark.read_text()) and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read()  # type: ignore[union-attr]
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()
