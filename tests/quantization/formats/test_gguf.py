"""GGUF: our codes bit for bit, judged by the gguf package, by transformers' loader and by llama.cpp itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from qtk.calibration.options import CalibrationOptions
from qtk.checkpoint.reader import Checkpoint
from qtk.engines.build import build_engine
from qtk.engines.description import read_description
from qtk.engines.options import BuildOptions
from qtk.errors import GateFailed, InputError
from qtk.quantization.formats.gguf import (
    GgufFormat,
    gguf_faults,
    gguf_refusals,
    interleave_rows,
    pack_q4_0,
    pack_q8_0,
    write_gguf,
)
from qtk.quantization.formats.gguf_tokenizer import gguf_tokenizer
from qtk.quantization.formats.registry import checkpoint_format
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.options import QuantizeOptions
from qtk.quantization.quantize import quantize_model
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.scheme_model import LinearScheme

gguf = pytest.importorskip("gguf", reason="gguf is not installed")
VARIANTS = ["llama", "llama-tied", "llama-linear-rope", "llama3-rope", "mistral", "qwen2", "qwen3"]
TOKENS = torch.randint(2, 258, (1, 40), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def tiny_bpe(tiny, tmp_path_factory):
    """tiny_bpe("qwen2") -> a copy of that tiny model with a tokenizer that has merges, without which llama.cpp loads none."""

    def get(variant: str) -> Path:
        copy = tmp_path_factory.getbasetemp() / f"bpe-{variant}"
        if not copy.is_dir():
            shutil.copytree(tiny(variant), copy)
            trained_tokenizer(copy, "gpt-2")
        return copy

    return get


def converted(directory: Path, path: Path) -> Path:
    write_gguf(ModelWeights.open(directory), path)
    return path


def llama_cpp_logits(path: Path, tokens: list[int]) -> torch.Tensor:
    """Logits [tokens, vocab] of a GGUF file by llama.cpp on the CPU, from the weights as the file has them.

    Repacked for AMX, llama.cpp 0.3.36 ends in a segmentation fault on a virtual machine that has AMX, torch or not.
    """
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama_cpp is not installed")
    default = llama_cpp.llama_cpp.llama_model_default_params

    def as_stored():
        settings = default()
        settings.use_extra_bufts = False
        return settings

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", as_stored)
        return _logits(llama_cpp, path, tokens)


def _logits(llama_cpp, path: Path, tokens: list[int]) -> torch.Tensor:
    model = llama_cpp.Llama(str(path), n_ctx=max(64, len(tokens)), n_threads=2, logits_all=True, verbose=False)
    model.eval(tokens)
    return torch.from_numpy(model.scores[: len(tokens)].copy())


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize(("bits", "kind"), [(4, "Q4_0"), (8, "Q8_0")])
def test_the_gguf_package_reads_the_same_weight(bits: int, kind: str, group: int) -> None:
    generator = torch.Generator().manual_seed(group)
    codes = torch.randint(0, 2**bits, (24, 256), generator=generator, dtype=torch.uint8)
    scales = torch.randn(24, 256 // group, generator=generator).half()
    linear = QuantizedLinear(codes, scales, None, bits, group)
    packed = (pack_q4_0 if bits == 4 else pack_q8_0)(linear).numpy()
    read = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[kind])
    assert torch.equal(torch.from_numpy(read), linear.dequantize())


def test_rows_are_interleaved_as_rotary_neighbours() -> None:
    weight = torch.arange(2 * 6).view(12, 1)  # two heads of six rows
    assert interleave_rows(weight, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


@pytest.mark.parametrize("variant", ["llama", "qwen2"])  # its loader knows no qwen3 with heads of another size than 128
def test_transformers_reads_the_same_model(
    tiny_bpe, tmp_path, variant: str, transformers_logits, write_dequantized, write_quantized
) -> None:
    from transformers import AutoModelForCausalLM

    directory = write_quantized(tiny_bpe(variant), tmp_path / "gptq", "gptq", LinearScheme(4, 64, True))
    converted(directory, tmp_path / "model.gguf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    weights = ModelWeights.open(directory)
    read = dict(model.named_parameters())
    for module, _ in weights.spec.all_linears():
        assert torch.equal(read[f"{module}.weight"], weights.float_linear(module, torch.float32)), module
    with torch.no_grad():
        logits = model(TOKENS).logits
    ours = transformers_logits(write_dequantized(directory, tmp_path / "float"), TOKENS)
    torch.testing.assert_close(logits, ours, atol=1e-4, rtol=1e-4)


def quantized(model: Path, out: Path, **options: object) -> Path:
    settled = QuantizeOptions(**{"method": "rtn", "group_size": 64, **options})
    quantize_model(model, out, settled, CalibrationOptions(samples=8, seq_len=48))
    return out


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.suffix in (".gguf", ".safetensors"))


@pytest.mark.parametrize(
    ("bits", "variant"),
    [
        *((4, variant) for variant in ("llama", "qwen2", "qwen3", "llama-tied")),
        (8, "llama-tied"),
        *(pytest.param(8, variant, marks=pytest.mark.slow) for variant in ("llama", "qwen2", "qwen3")),
    ],
)
def test_the_file_alone_is_read_as_the_checkpoint_it_was_made_from(tiny_bpe, tmp_path, variant: str, bits: int) -> None:
    model = tiny_bpe(variant)
    override = ("*.layers.1.mlp.down_proj=bits:16", "*.layers.0.mlp.*=group:32")
    options = {"bits": bits, "override": override}
    alone = ModelWeights.open(quantized(model, tmp_path / "coder", container="gguf", **options))
    beside = ModelWeights.open(quantized(model, tmp_path / "gptq", container="gptq", **options))
    assert names(tmp_path / "coder") == [f"coder-Q{bits}_0.gguf"]
    assert alone.scheme == beside.scheme
    for name, _ in beside.spec.all_linears():
        ours, theirs = alone.linear(name), beside.linear(name)
        if isinstance(theirs, QuantizedLinear):
            assert isinstance(ours, QuantizedLinear)
            assert torch.equal(ours.codes, theirs.codes)
            assert torch.equal(ours.scales, theirs.scales.half())
        else:
            assert torch.equal(ours.half(), theirs.half()), name
        bias = beside.bias(name)
        assert bias is None or torch.equal(alone.bias(name), bias.float())
    tokens = TOKENS[:, :8]
    assert torch.equal(alone.embed(tokens, torch.float32), beside.embed(tokens, torch.float32).half().float())
    assert torch.equal(alone.final_norm(), beside.final_norm().float())
    assert torch.equal(alone.lm_head(torch.float32), beside.lm_head(torch.float32).half().float())


def test_an_engine_and_the_commands_read_the_file_alone(tiny_bpe, tmp_path, run_qtk) -> None:
    out = quantized(tiny_bpe("llama"), tmp_path / "coder", container="gguf")
    gptq = quantized(tiny_bpe("llama"), tmp_path / "gptq", container="gptq")
    for name, model in (("a", out), ("b", gptq)):
        build_engine(model, tmp_path / name, BuildOptions(max_input_len=32, max_output_len=8))
    sizes = [[stage.bytes for stage in read_description(tmp_path / name).stages] for name in "ab"]
    assert sizes[0] == sizes[1]
    divergence = run_qtk("bench", "divergence", out, "--reference", gptq, "--rows", 2, "--seq-len", 32, "--json")
    assert json.loads(divergence.stdout)["pooled"]["kl"]["mean"] < 1e-4, "float16 and bfloat16 tables aside, the same"
    inspected = json.loads(run_qtk("inspect", out, "--json").stdout)["facts"]["quantization"]
    assert (inspected["container"], inspected["linears"][0]["count"]) == ("gguf", 21)
    assert run_qtk("verify", out).returncode == 0
    assert run_qtk("plan", out, "--gpu", "a10", "--json").stdout.count("INT4 group 64") == 1
    assert run_qtk("quantize", out, "-o", tmp_path / "again").returncode == 2


def test_what_an_earlier_qtk_wrote_is_still_read(tiny_bpe, tmp_path, write_quantized) -> None:
    """A gptq checkpoint with model.gguf beside it."""
    out = write_quantized(tiny_bpe("llama"), tmp_path / "out", "gptq", LinearScheme(4, 64, True))
    converted(out, out / "model.gguf")
    assert ModelWeights.open(out).format is checkpoint_format("gptq")


def test_the_best_of_two_methods_leaves_one_file_too(tiny_bpe, tmp_path) -> None:
    out = quantized(tiny_bpe("llama"), tmp_path / "coder", container="gguf", method="auto")
    assert names(out) == ["coder-Q4_0.gguf"]
    assert gguf.GGUFReader(out / "coder-Q4_0.gguf").fields["general.name"].contents() == "coder"
    assert "llama-server -m coder/coder-Q4_0.gguf" in (out / "README.md").read_text()


def test_a_damaged_file_is_found_when_it_is_read_back(tiny_bpe, tmp_path, monkeypatch) -> None:
    def damaged(weights, path: Path) -> None:
        write_gguf(weights, path)
        stored = bytearray(path.read_bytes())
        stored[-100 * 320] ^= 1
        path.write_bytes(stored)

    monkeypatch.setattr("qtk.quantization.formats.gguf.write_gguf", damaged)
    with pytest.raises(GateFailed, match="holds other weights than the checkpoint"):
        quantized(tiny_bpe("llama"), tmp_path / "coder", container="gguf")


def test_a_file_that_differs_from_its_checkpoint_is_found(tiny_bpe, tmp_path, write_quantized) -> None:
    checkpoint = write_quantized(tiny_bpe("llama"), tmp_path / "a", "gptq", LinearScheme(4, 64, True))
    path, weights = converted(checkpoint, tmp_path / "model.gguf"), ModelWeights.open(checkpoint)
    assert gguf_faults(weights, path) == []
    stored = bytearray(path.read_bytes())
    stored[-100 * 320] ^= 1  # a code or scale of what is stored last
    path.write_bytes(stored)
    (fault,) = gguf_faults(weights, path)
    assert fault.startswith("model.gguf: ")
    assert "holds other weights than the checkpoint" in fault
    path.write_bytes(stored[:100])
    (fault,) = gguf_faults(weights, path)
    assert "cannot be read" in fault


def test_a_table_beyond_float16_is_refused_before_work(tiny_bpe, tmp_path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_bpe("llama"), model)
    tensors = safetensors.torch.load_file(model / "model.safetensors")
    tensors["model.embed_tokens.weight"][3, 5] = 70000
    safetensors.torch.save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    (reason,) = GgufFormat().checkpoint_refusals(Checkpoint(model))
    assert "model.embed_tokens.weight has values beyond float16's 65504" in reason


def test_a_tokenizer_that_gguf_cannot_hold_is_refused_before_work(tiny) -> None:
    (reason,) = checkpoint_format("gguf").checkpoint_refusals(Checkpoint(tiny("llama")))
    assert "no merges" in reason


@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_cpp_computes_the_same_logits(
    tiny_bpe, tmp_path, variant: str, transformers_logits, write_dequantized, write_quantized
) -> None:
    """A float file agrees closely; an INT4 one as closely as llama.cpp's 8-bit activations allow."""
    float_file = converted(tiny_bpe(variant), tmp_path / "float.gguf")
    expected = transformers_logits(tiny_bpe(variant), TOKENS)[0]
    logits = llama_cpp_logits(float_file, TOKENS[0].tolist())
    assert float((logits - expected).abs().max()) < 0.02
    directory = write_quantized(tiny_bpe(variant), tmp_path / "gptq", "gptq", LinearScheme(4, 64, True))
    int4_file = converted(directory, tmp_path / "int4.gguf")
    int4 = transformers_logits(write_dequantized(directory, tmp_path / "float"), TOKENS)[0]
    logits = llama_cpp_logits(int4_file, TOKENS[0].tolist())
    away = float((int4 - expected).pow(2).mean().sqrt())
    assert float((logits - int4).pow(2).mean().sqrt()) < 0.15 * away
    assert int4_file.stat().st_size < 0.65 * float_file.stat().st_size


def test_an_8_bit_head_and_a_float_embedding(tiny_bpe, tmp_path, write_quantized) -> None:
    override = {"lm_head": LinearScheme(8, 32, True)}
    directory = write_quantized(tiny_bpe("llama"), tmp_path / "gptq", "gptq", LinearScheme(4, 32, True), override)
    path = converted(directory, tmp_path / "model.gguf")
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    assert tensors["token_embd.weight"].tensor_type == gguf.GGMLQuantizationType.F16
    weights = ModelWeights.open(directory)
    read = gguf.quants.dequantize(tensors["output.weight"].data, gguf.GGMLQuantizationType.Q8_0)
    assert torch.equal(torch.from_numpy(read), weights.float_linear("lm_head", torch.float32))
    table = torch.from_numpy(tensors["token_embd.weight"].data.copy())
    assert torch.equal(table, weights.checkpoint.tensor("model.embed_tokens.weight").half())


def test_a_sliding_window_bounds_the_context(tiny_bpe, tmp_path) -> None:
    reader = gguf.GGUFReader(converted(tiny_bpe("mistral-window"), tmp_path / "model.gguf"))
    assert reader.fields["llama.context_length"].contents() == 16


def test_what_gguf_cannot_hold_is_listed(tiny_bpe, tmp_path, write_quantized) -> None:
    directory = write_quantized(tiny_bpe("llama"), tmp_path / "gptq", "gptq", LinearScheme(4, 64, False))
    with pytest.raises(InputError, match="asymmetric") as caught:
        converted(directory, tmp_path / "model.gguf")
    assert "layers.{0-2}.self_attn.q_proj" in str(caught.value)
    assert not (tmp_path / "model.gguf").exists()
    assert "groups of 48" in gguf_refusals("m", (8, 96), LinearScheme(4, 48, True))[0]


# How widespread tokenizers split text, as tokenizers' own objects: what llama.cpp is compared with.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
DEEPSEEK_SPLITS = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+")
TEXT = (
    "def f(x1234):\n\t\treturn  x1234 ** 2  # it's 'fine'\r\n\r\nélan vital 99 I'LL Ünïcode!?\n   end 深度求索 한국어 "
)


def trained_tokenizer(directory: Path, kind: str) -> None:
    """A small BPE tokenizer with real merges that splits text as `kind` does, in place of the directory's own."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    digits = pre_tokenizers.Digits(individual_digits=True)

    def split(pattern: str):
        return pre_tokenizers.Split(Regex(pattern), "isolated")

    steps = {
        "gpt-2": [whole],
        "smollm": [digits, whole],
        "llama-bpe": [split(LLAMA3_SPLIT), plain],
        "qwen2": [split(LLAMA3_SPLIT.replace("{1,3}", "")), plain],
        "deepseek-coder": [*map(split, DEEPSEEK_SPLITS), digits, plain],
    }[kind]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT * 4, "1234 1234 x1234 return return it's  \n\n\t\t"], trainer)
    tokenizer.save(str(directory / "tokenizer.json"))


@pytest.mark.parametrize("kind", ["gpt-2", "smollm", "llama-bpe", "qwen2", "deepseek-coder"])
def test_llama_cpp_tokenizes_alike(tmp_path, kind: str, make_tiny, write_byte_tokenizer) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama_cpp is not installed")
    from tokenizers import Tokenizer

    directory = make_tiny(tmp_path / "model", "llama", num_hidden_layers=1)
    write_byte_tokenizer(directory)
    trained_tokenizer(directory, kind)
    assert gguf_tokenizer(directory, 320).pre == kind
    path = converted(directory, tmp_path / "model.gguf")
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    theirs = model.tokenize(TEXT.encode(), add_bos=False, special=False)
    assert theirs == Tokenizer.from_file(str(directory / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    assert model.detokenize(theirs).decode() == TEXT


def changed_tokenizer(source: Path, out: Path, **values) -> Path:
    shutil.copytree(source, out)
    content = json.loads((out / "tokenizer.json").read_text())
    content |= values
    (out / "tokenizer.json").write_text(json.dumps(content))
    return out


def test_tokenizers_that_llama_cpp_has_no_name_for_are_refused(tiny, tiny_bpe, tmp_path) -> None:
    split = {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": False}
    with pytest.raises(InputError, match=r"x\+"):
        gguf_tokenizer(changed_tokenizer(tiny("llama"), tmp_path / "a", pre_tokenizer=split), 320)
    with pytest.raises(InputError, match="Unigram"):
        gguf_tokenizer(changed_tokenizer(tiny("llama"), tmp_path / "b", model={"type": "Unigram", "vocab": []}), 320)
    with pytest.raises(InputError, match="Lowercase"):
        gguf_tokenizer(changed_tokenizer(tiny("llama"), tmp_path / "c", normalizer={"type": "Lowercase"}), 320)
    with pytest.raises(InputError, match="no merges"):
        gguf_tokenizer(tiny("llama"), 320)
    with pytest.raises(InputError, match="beyond the 100 rows"):
        gguf_tokenizer(tiny_bpe("llama"), 100)
    (tmp_path / "d").mkdir()
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        gguf_tokenizer(tmp_path / "d", 320)


def test_the_tokenizer_s_own_facts_are_carried(tiny_bpe) -> None:
    tokenizer = gguf_tokenizer(tiny_bpe("llama"), 330)
    assert len(tokenizer.tokens) == 330
    assert tokenizer.special == {"bos": 0, "eos": 1, "pad": 1}
    assert tokenizer.kinds[0] == 3
    assert tokenizer.kinds[325] == 5
    assert not tokenizer.adds_bos
    assert tokenizer.chat_template is not None


@pytest.mark.slow
def test_smollm2_runs_in_llama_cpp_as_we_mean_it(
    smollm2, tmp_path, transformers_logits, write_dequantized, write_quantized
) -> None:
    """Perplexity by llama.cpp within two percent of ours for the same codes, and its tokens are ours."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama_cpp is not installed")
    from tokenizers import Tokenizer

    directory = write_quantized(smollm2, tmp_path / "gptq", "gptq", LinearScheme(4, 64, True))
    path = converted(directory, tmp_path / "model.gguf")
    text = Path(json.__file__).with_name("decoder.py").read_text()
    ids = Tokenizer.from_file(str(smollm2 / "tokenizer.json")).encode(text).ids[:384]
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    assert model.tokenize(text.encode(), add_bos=False, special=False)[:384] == ids
    tokens = torch.tensor([ids])
    ours = transformers_logits(write_dequantized(directory, tmp_path / "float"), tokens)[0]
    theirs = llama_cpp_logits(path, ids)

    def perplexity(logits: torch.Tensor) -> float:
        return float(torch.nn.functional.cross_entropy(logits[:-1].float(), tokens[0, 1:]).exp())

    agreement = float((ours.argmax(1) == theirs.argmax(1)).float().mean())
    print(
        f"perplexity ours {perplexity(ours):.4f}, llama.cpp {perplexity(theirs):.4f}, top-1 agreement {agreement:.3f}"
    )
    assert abs(perplexity(theirs) / perplexity(ours) - 1) < 0.02
    assert agreement > 0.95
