"""qtk quantize on tiny models: what is written, what it costs, what is refused; through the real command line."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from support.tiny_models import VARIANTS

from qtk.calibration.options import CalibrationOptions
from qtk.checkpoint.manifest import MANIFEST_NAME, read_manifest
from qtk.checkpoint.reader import Checkpoint
from qtk.cli.main import cli
from qtk.errors import InputError
from qtk.models import forward
from qtk.models.registry import model_spec
from qtk.models.tokenizer import TextTokenizer
from qtk.quantization.algorithms.gptq import DAMPING_LADDER
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.options import QuantizeOptions
from qtk.quantization.quantize import quantize_model
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.report import LOG_NAME, LayerRecord

SMALL = CalibrationOptions(samples=16, seq_len=64)

# The figures are those of float32; tests that take `compute_dtype` hold in bfloat16 as well.


def logits(model: Path, tokens: torch.Tensor) -> torch.Tensor:
    weights = ModelWeights.open(model)
    spec = weights.spec
    cos, sin = spec.rope.tables(spec.head_dim, tokens.shape[1])
    hidden = weights.embed(tokens, torch.float32)
    for layer in range(spec.num_layers):
        mask = forward.attention_mask(tokens.shape[1], None, spec.windows[layer])
        hidden = forward.block_forward(spec, weights.block(layer, torch.float32), hidden, cos, sin, mask=mask)
    return forward.rms_norm(hidden, weights.final_norm(), spec.rms_norm_eps) @ weights.lm_head(torch.float32).T


def divergence(reference: Path, model: Path) -> float:
    text = Path(__file__).read_text()[:512]  # code, as the calibration text is, but none of it
    tokens = torch.tensor(TextTokenizer(reference).encode(text)[:256]).view(4, 64)
    p, q = (logits(m, tokens).log_softmax(-1) for m in (reference, model))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_architecture_is_quantized_and_read_back(tiny, tmp_path, variant: str) -> None:
    report = quantize_model(tiny(variant), tmp_path / "out", QuantizeOptions(), SMALL)
    source, written = Checkpoint(tiny(variant)), ModelWeights.open(tmp_path / "out")
    spec = model_spec(source)
    assert report.linears == 7 * spec.num_layers
    assert report.group_size == 128
    assert report.fell_back_to_rtn == []
    assert report.quantized_bytes < 0.55 * report.float_bytes
    for name, _ in spec.all_linears():
        linear = written.linear(name)
        assert isinstance(linear, QuantizedLinear)
        assert f"{name}.weight" not in written.checkpoint
    untouched = [
        n
        for n in spec.all_tensors()
        if n.removesuffix(".weight") not in written.scheme.modules or n == "lm_head.weight"
    ]
    assert all(torch.equal(source.tensor(n), written.checkpoint.tensor(n)) for n in untouched)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tiny(variant) / "tokenizer.json").read_bytes()
    assert divergence(tiny(variant), tmp_path / "out") < 0.2


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("group", [32, 64])
def test_gptq_is_closer_than_rtn_and_effort_pays(tiny, tmp_path, sym: bool, group: int) -> None:
    found = {}
    for name, options in {
        "rtn": QuantizeOptions(method="rtn", group_size=group, sym=sym),
        "fast": QuantizeOptions(effort="fast", group_size=group, sym=sym),
        "default": QuantizeOptions(group_size=group, sym=sym),
    }.items():
        quantize_model(tiny("llama"), tmp_path / name, options, CalibrationOptions(samples=64, seq_len=128))
        found[name] = divergence(tiny("llama"), tmp_path / name)
    assert found["fast"] < found["rtn"]
    assert found["default"] < found["rtn"]


def test_best_tunes_each_block_and_its_norms(tiny, tmp_path) -> None:
    calibration = CalibrationOptions(samples=32, seq_len=64)
    for name in ("best", "again"):
        quantize_model(tiny("llama"), tmp_path / name, QuantizeOptions(effort="best"), calibration)
    lines = [json.loads(line) for line in (tmp_path / "best" / LOG_NAME).read_text().splitlines()]
    assert all(0 < line["block_error_after"] <= line["block_error_before"] for line in lines)
    tuned = [line["layer"] for line in lines if line["block_error_after"] < line["block_error_before"]]
    assert tuned, "no block came out better"
    source, written = Checkpoint(tiny("llama")), ModelWeights.open(tmp_path / "best")
    norm = tuned[0].rpartition("self_attn")[0] + "post_attention_layernorm.weight"
    assert not torch.equal(source.tensor(norm), written.checkpoint.tensor(norm))
    assert divergence(tiny("llama"), tmp_path / "best") < 0.2
    assert (tmp_path / "best/model.safetensors").read_bytes() == (tmp_path / "again/model.safetensors").read_bytes()


@pytest.mark.parametrize("variant", ["llama", "qwen2"])
def test_awq_folds_its_scales_into_a_plain_checkpoint(tiny, tmp_path, compute_dtype, variant: str) -> None:
    report = quantize_model(tiny(variant), tmp_path / "out", QuantizeOptions(method="awq", group_size=32), SMALL)
    assert report.fell_back_to_rtn == []
    assert divergence(tiny(variant), tmp_path / "out") < 0.1
    source, written = Checkpoint(tiny(variant)), ModelWeights.open(tmp_path / "out").checkpoint
    changed = {n for n in source.names if n in written and not torch.equal(source.tensor(n), written.tensor(n))}
    assert any(name.endswith("input_layernorm.weight") for name in changed)
    assert all(name.endswith(("layernorm.weight", "v_proj.bias")) for name in changed)


def test_auto_takes_the_method_that_is_nearer_on_rows_held_back(tiny, tmp_path) -> None:
    calibration = CalibrationOptions(samples=24, seq_len=64)
    report = quantize_model(tiny("llama"), tmp_path / "auto", QuantizeOptions(method="auto"), calibration)
    assert set(report.held_back_kl) == {"gptq", "awq"}
    assert report.method == min(report.held_back_kl, key=report.held_back_kl.get)
    assert report.calibration_rows_offered == 24
    # What is taken is what the method alone would have written from the same rows.
    alone = QuantizeOptions(method=report.method)
    quantize_model(tiny("llama"), tmp_path / "alone", alone, calibration)
    assert (tmp_path / "auto/model.safetensors").read_bytes() == (tmp_path / "alone/model.safetensors").read_bytes()
    assert sorted(p.name for p in (tmp_path / "auto").iterdir()) == sorted(
        p.name for p in (tmp_path / "alone").iterdir()
    )


def test_auto_needs_rows_to_hold_back(tiny, tmp_path, run_qtk) -> None:
    (tmp_path / "short.txt").write_text("def f(x):\n    return x + 1\n" * 8)
    words = ["--method", "auto", "--calibration", tmp_path / "short.txt", "--seq-len", 128]
    answer = run_qtk("quantize", tiny("llama"), "-o", tmp_path / "out", *words)
    assert answer.returncode == 2
    assert "--method auto needs 4 at least" in answer.stderr


def test_padding_never_enters_the_hessian(tiny, tmp_path, compute_dtype) -> None:
    """The same conversations in rows of 64 and of 100 tokens give the same codes: what is padding differs, nothing else."""
    lines = [json.dumps({"messages": [{"role": "user", "content": "x = " + "abc" * (i % 5 + 1)}]}) for i in range(40)]
    (tmp_path / "chat.jsonl").write_text("\n".join(lines))
    for seq_len in (64, 100):
        calibration = CalibrationOptions(calibration=str(tmp_path / "chat.jsonl"), samples=40, seq_len=seq_len)
        quantize_model(tiny("qwen2"), tmp_path / str(seq_len), QuantizeOptions(effort="fast"), calibration)
    short, long = (ModelWeights.open(tmp_path / str(n)) for n in (64, 100))
    for name, _ in short.spec.all_linears():
        same = (short.linear(name).codes == long.linear(name).codes).float().mean()
        assert same > 0.97, name  # products of other shapes round otherwise; padding in a Hessian would change far more


def test_log_has_a_line_for_every_linear(tiny, tmp_path, compute_dtype) -> None:
    quantize_model(tiny("llama"), tmp_path / "out", QuantizeOptions(), SMALL)
    lines = [json.loads(line) for line in (tmp_path / "out" / LOG_NAME).read_text().splitlines()]
    assert [line["layer"] for line in lines][:2] == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.k_proj",
    ]
    assert len(lines) == 21
    for line in lines:
        assert 0 <= line["error_after"] < line["error_before"] < 1
        assert line["damping"] == DAMPING_LADDER[0]
        assert line["seconds"] > 0
        assert line["peak_memory_bytes"] > 10**7


def test_spilled_activations_give_the_same_codes(tiny, tmp_path, activations_in_memory) -> None:
    for name, limit in (("memory", 1 << 30), ("disk", 1000)):
        activations_in_memory(limit)
        report = quantize_model(tiny("llama"), tmp_path / name, QuantizeOptions(), SMALL)
        assert (report.spilled_bytes > 0) == (name == "disk")
    assert (tmp_path / "memory/model.safetensors").read_bytes() == (tmp_path / "disk/model.safetensors").read_bytes()
    assert not list((tmp_path / "disk").glob(".calibration*"))


def test_overrides_and_an_8_bit_head(tiny, tmp_path) -> None:
    override = ("*.mlp.down_proj=bits:8,group:32", "model.layers.0.*=bits:16")
    quantize_model(tiny("llama"), tmp_path / "out", QuantizeOptions(override=override, lm_head_bits="8"), SMALL)
    written = ModelWeights.open(tmp_path / "out")
    assert isinstance(written.linear("model.layers.0.mlp.down_proj"), torch.Tensor)
    down = written.linear("model.layers.1.mlp.down_proj")
    assert (down.bits, down.group_size) == (8, 32)
    head = written.linear("lm_head")
    assert head.bits == 8
    source = Checkpoint(tiny("llama")).tensor("lm_head.weight").float()
    assert (head.dequantize() - source).abs().max() < 0.02 * source.abs().max()


def test_group_that_does_not_divide_lists_all_layers(tiny, tmp_path, run_qtk, make_tiny, write_byte_tokenizer) -> None:

    model = make_tiny(tmp_path / "odd", "llama", hidden_size=192, num_attention_heads=6)
    write_byte_tokenizer(model)
    answer = run_qtk("quantize", model, "-o", tmp_path / "out", "--group-size", 128)
    assert answer.returncode == 2
    assert answer.stderr.count("model.layers.{0-2}.") == answer.stderr.count("192 inputs, group 128") == 6
    assert "--group-size 64 divides them all" in answer.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--bits", "3"], "3 bits are not supported"),
        (["--group-size", "48"], "48 is not supported"),
        (["--container", "exl9"], "not known"),
        (["--format", "exl9"], "--format is now --container exl9"),
        (["--override", "*.q_proj=bits:8"], "fuse must be stored alike"),
        (["--override", "*.nothing=bits:8"], "no module matches"),
        (["--override", "*.down_proj=bits:8,skip"], "contradicts itself: skip"),
        (["--override", "*.down_proj=group:32,group:64"], "contradicts itself: group:64"),
        (["--override", "*.down_proj=bits:8", "--override", "*.down_proj=skip"], "more than once for *.down_proj"),
        (["--override", "*=bits:5"], "settings are"),
        (["--seq-len", "4096"], "longer than the model's context of 512"),
        (["--calibration", "absent.txt"], "absent.txt"),
    ],
)
def test_bad_options_end_before_any_work(tiny, tmp_path, run_qtk, words: list[str], complaint: str) -> None:
    answer = run_qtk("quantize", tiny("llama"), "-o", tmp_path / "out", *words)
    assert answer.returncode == 2, answer.stderr
    assert complaint in answer.stderr
    assert "Traceback" not in answer.stderr
    assert list(tmp_path.iterdir()) == []


def test_quantized_model_is_refused(tiny, tmp_path) -> None:
    quantize_model(tiny("llama"), tmp_path / "a", QuantizeOptions(method="rtn"), SMALL)
    with pytest.raises(InputError, match="quantized already"):
        quantize_model(tmp_path / "a", tmp_path / "b", QuantizeOptions(), SMALL)


@pytest.mark.parametrize("where", ["compression_config", "hf_quant_config.json", "quantize_config.json"])
def test_a_model_quantized_by_another_tool_is_refused(tiny, tmp_path, where: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny("llama"), model)
    if where.endswith(".json"):
        (model / where).write_text('{"bits": 4}')
    else:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, where: {"format": "pack-quantized"}}))
    with pytest.raises(InputError, match=f"quantized already, says its .*{where}"):
        quantize_model(model, tmp_path / "out", QuantizeOptions(), SMALL)


def overflowing(source: Path, out: Path) -> Path:
    """A copy of a model whose MLPs work on values of 1e20, so that the Hessian of down_proj overflows; its weights make up
    for them."""
    shutil.copytree(source, out)
    tensors = safetensors.torch.load_file(out / "model.safetensors")
    for name in tensors:
        if name.endswith("post_attention_layernorm.weight"):
            tensors[name] = tensors[name] * 1e10
        elif name.endswith("down_proj.weight"):
            tensors[name] = tensors[name] * 1e-20
    safetensors.torch.save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_a_hessian_that_stays_singular_is_told_everywhere(tiny, tmp_path) -> None:
    """A warning, the summary, the log and the manifest name the linears; --verbose shows the method of each."""
    model = overflowing(tiny("llama"), tmp_path / "model")
    words = [model, "-o", tmp_path / "out", "--samples", 8, "--seq-len", 48, "--verbose"]
    answer = CliRunner().invoke(cli, ["quantize", *map(str, words)])
    assert answer.exit_code == 0, answer.output
    named = [f"model.layers.{layer}.mlp.down_proj" for layer in range(3)]
    assert all(f"{name}: the Hessian stays singular" in answer.stderr for name in named)
    [warning] = [text for text in read_manifest(tmp_path / "out").warnings if "rounded to nearest" in text]
    assert "model.layers.{0-2}.mlp.down_proj" in warning
    assert "model.layers.{0-2}.mlp.down_proj" in next(
        line for line in answer.stdout.splitlines() if "ROUNDED TO NEAREST" in line
    )
    rows = {cells[0]: cells for line in answer.stdout.splitlines() if (cells := line.replace("│", " ").split())}
    assert all(rows[name][1] == "rtn" for name in named)
    assert rows["model.layers.0.mlp.up_proj"][1] == "gptq"
    assert read_manifest(tmp_path / "out").notes["report"]["fell_back_to_rtn"] == named
    lines = [json.loads(line) for line in (tmp_path / "out" / LOG_NAME).read_text().splitlines()]
    assert [line["layer"] for line in lines if line["method"] == "rtn"] == named


def test_a_seed_gives_the_same_bits_and_another_one_others(tiny, tmp_path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        calibration = CalibrationOptions(samples=8, seq_len=48, seed=seed)
        quantize_model(tiny("llama"), tmp_path / name, QuantizeOptions(), calibration)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    assert read_manifest(tmp_path / "c").options["seed"] == 2


@pytest.mark.parametrize(("effort", "alike"), [("best", False), ("default", True)])
def test_the_seed_reaches_the_tuning(tiny, tmp_path, effort: str, alike: bool) -> None:
    """A text file gives the same rows whatever the seed, so only the order of rows in tuning can make a difference."""
    (tmp_path / "text.txt").write_text(Path(__file__).read_text()[:5000])
    for seed in (7, 8):
        calibration = CalibrationOptions(calibration=str(tmp_path / "text.txt"), samples=64, seq_len=64, seed=seed)
        quantize_model(tiny("llama"), tmp_path / str(seed), QuantizeOptions(effort=effort), calibration)
    files = [(tmp_path / str(seed) / "model.safetensors").read_bytes() for seed in (7, 8)]
    assert (files[0] == files[1]) is alike


def test_figures_that_are_not_finite_are_none_in_the_log() -> None:
    record = LayerRecord(
        layer="a",
        method="gptq",
        bits=4,
        group_size=32,
        symmetric=True,
        error_before=float("nan"),
        error_after=float("inf"),
        damping=0.01,
        seconds=1.0,
    )
    assert (record.error_before, record.error_after, record.damping) == (None, None, 0.01)
    assert record.with_block_errors(float("nan"), 0.5).block_error_before is None


def test_too_few_tokens_warn_with_the_figure_wherever_the_result_is_read(tiny, tmp_path, run_qtk) -> None:
    (tmp_path / "short.txt").write_text("x = 1\n" * 8)
    words = ["--calibration", tmp_path / "short.txt", "--effort", "fast", "--json"]
    answer = run_qtk("quantize", tiny("llama"), "-o", tmp_path / "runs/out", *words)
    assert answer.returncode == 0, answer.stderr
    warnings = json.loads(answer.stdout)["warnings"]
    assert warnings[0] == "Calibration text: asked for 128 rows, found 1 (48 tokens)."
    assert warnings[1].startswith("48 calibration tokens for linears of up to 256 inputs")
    assert "cost at least 11 % more of KL divergence" in warnings[1]
    assert "512 tokens would gain that" in warnings[1]
    assert all(f"WARNING: {text}" in answer.stderr for text in warnings)
    assert json.loads((tmp_path / "runs/out" / MANIFEST_NAME).read_text())["warnings"] == warnings
    assert run_qtk("inspect", tmp_path / "runs/out").stdout.count("asked for 128 rows, found 1") == 1
    run_qtk("report", tmp_path / "runs")
    report = (tmp_path / "runs/report/report.md").read_text()
    assert report.index("## Warnings") < report.index(f"- out: {warnings[0]}") < report.index("## Sizes")


@pytest.mark.parametrize("method", ["gptq", "auto"])
def test_a_text_below_the_floor_is_refused(tiny, tmp_path, run_qtk, method: str) -> None:
    (tmp_path / "tiny.jsonl").write_text('{"text": "hello world"}\n')
    words = ["--calibration", tmp_path / "tiny.jsonl", "--method", method]
    answer = run_qtk("quantize", tiny("llama"), "-o", tmp_path / "out", *words)
    assert answer.returncode == 2
    wanted = 128 if method == "gptq" else 144  # some are held back to compare methods on
    assert f"asked for {wanted} rows, found 1 (11 tokens)" in answer.stderr
    assert "need 32 tokens at least" in answer.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.jsonl"]


def test_command_line_prints_one_json_result(tiny, tmp_path, run_qtk) -> None:
    answer = run_qtk("quantize", tiny("llama-tied"), "-o", tmp_path / "out", "--samples", 8, "--seq-len", 64, "--json")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["linears"] == 21
    assert run_qtk("verify", tmp_path / "out").returncode == 0


STOPPED_ROWS, STOPPED_TOKENS = 48, 64


def start_and_kill_after_a_block(out: Path, words: list[object], number: int) -> None:
    """Starts qtk quantize and sends a signal as soon as the first block is saved."""
    process = subprocess.Popen(
        [sys.executable, "-m", "qtk", "quantize", *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not (out.with_name(out.name + ".partial") / ".calibration/state.json").is_file():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    assert process.wait(60) in (130, -signal.SIGKILL)
    process.stderr.close()
    assert not out.exists()


@pytest.fixture(scope="module")
def twelve_blocks(tmp_path_factory, make_tiny, write_byte_tokenizer) -> Path:
    """A model with enough blocks to be stopped among them, and beside it as `whole` what an undisturbed run makes of it."""
    model = make_tiny(tmp_path_factory.mktemp("twelve") / "model", "llama", num_hidden_layers=12)
    write_byte_tokenizer(model)
    quantize_model(
        model,
        model.with_name("whole"),
        QuantizeOptions(group_size=32),
        CalibrationOptions(samples=STOPPED_ROWS, seq_len=STOPPED_TOKENS),
    )
    return model


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_resumed_run_gives_the_same_bits(tmp_path, run_qtk, number: int, twelve_blocks: Path) -> None:
    model, whole = twelve_blocks, twelve_blocks.with_name("whole")
    words = ["--samples", STOPPED_ROWS, "--seq-len", STOPPED_TOKENS, "--group-size", 32]
    start_and_kill_after_a_block(tmp_path / "out", [model, "-o", tmp_path / "out", *words], number)
    refused = run_qtk("quantize", model, "-o", tmp_path / "out", *words, "--asym", "--resume")
    assert refused.returncode == 2
    assert "begun with another --sym" in refused.stderr
    repeated = run_qtk("quantize", model, "-o", tmp_path / "out", *words)
    assert repeated.returncode == 2, "typed again without --resume, it is not thrown away"
    assert "blocks done" in repeated.stderr
    resumed = run_qtk("quantize", model, "-o", tmp_path / "out", *words, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "Resumed after block" in resumed.stderr
    files = ("model.safetensors", "config.json")
    assert all((whole / f).read_bytes() == (tmp_path / "out" / f).read_bytes() for f in files)
    layers = [json.loads(line)["layer"] for line in (tmp_path / "out" / LOG_NAME).read_text().splitlines()]
    assert layers == [json.loads(line)["layer"] for line in (whole / LOG_NAME).read_text().splitlines()]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_damaged_weights_are_named_and_leave_nothing(tiny, tmp_path, run_qtk) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny("llama"), model)
    tensors = safetensors.torch.load_file(model / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = float("nan")
    safetensors.torch.save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    answer = run_qtk("quantize", model, "-o", tmp_path / "out", "--samples", 8, "--seq-len", 64)
    assert answer.returncode == 2
    assert "model.layers.0.mlp.up_proj.weight holds 1 NaN or Inf" in answer.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
