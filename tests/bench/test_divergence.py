"""Divergence against a naive float64 computation with transformers, its standard errors, and its held-out texts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from qtk.bench.divergence_run import StreamedModel, clustered, measure_divergence
from qtk.bench.held_out_rows import held_out_rows
from qtk.bench.options import CODE, ENGLISH, DivergenceOptions
from qtk.calibration.held_out import is_held_out, standard_library_modules
from qtk.errors import InputError
from qtk.models.tokenizer import TextTokenizer
from qtk.quantization.model_weights import ModelWeights


@pytest.fixture(scope="module")
def pair(tmp_path_factory, make_tiny, write_byte_tokenizer) -> tuple[Path, Path]:
    """(reference, model): two tiny Llamas; the second one's weights are rounded to float8, a real loss."""
    from safetensors.torch import load_file, save_file

    root = tmp_path_factory.mktemp("pair")
    reference = make_tiny(root / "reference", "llama")
    model = make_tiny(root / "model", "llama")
    weights = {n: t.to(torch.float8_e4m3fn).to(t.dtype) for n, t in load_file(model / "model.safetensors").items()}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    for directory in (reference, model):
        write_byte_tokenizer(directory)
    return reference, model


def naive(directory: Path, rows: list[list[int]]) -> list[torch.Tensor]:
    """log-probabilities [tokens - 1, vocab] of each row in float64, by transformers."""
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    with torch.no_grad():
        return [loaded(torch.tensor([row])).logits[0, :-1].log_softmax(-1) for row in rows]


def test_equals_a_naive_float64_computation(pair, tmp_path) -> None:
    reference, model = pair
    # Rows of unequal length: padding must not count.
    messages = [{"role": "user", "content": text} for text in ("def f(x):", "a longer question, then: " * 2, "?")]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps({"messages": [m]}) for m in messages))
    options = DivergenceOptions(data=(str(data),), rows=3, seq_len=48)
    result = measure_divergence(model, reference, options)

    held = held_out_rows(str(data), TextTokenizer(reference), 3, 48)
    rows = [row[:length].tolist() for row, length in zip(held.tokens, held.lengths.tolist(), strict=True)]
    assert len({len(row) for row in rows}) == 3
    log_p, log_q = naive(reference, rows), naive(model, rows)
    kl = [(p.exp() * (p - q)).sum(-1) for p, q in zip(log_p, log_q, strict=True)]
    agree = [(p.argmax(-1) == q.argmax(-1)).double() for p, q in zip(log_p, log_q, strict=True)]
    losses = [
        torch.cat([-x.gather(1, torch.tensor(r[1:])[:, None])[:, 0] for x, r in zip(side, rows, strict=True)])
        for side in (log_p, log_q)
    ]
    everything = torch.cat(kl)
    text = result.texts[0]
    assert text.tokens == sum(len(row) - 1 for row in rows)
    assert everything.mean() > 1e-3, "the two models must differ for this to test anything"
    assert text.kl.mean == pytest.approx(float(everything.mean()), rel=1e-3)
    assert text.kl_max == pytest.approx(float(everything.max()), rel=1e-3)
    assert text.kl_p99 == pytest.approx(float(everything.quantile(0.99)), rel=1e-3)
    assert text.top1_agreement.mean == pytest.approx(float(torch.cat(agree).mean()), abs=1e-6)
    assert text.perplexity_reference == pytest.approx(math.exp(losses[0].mean()), rel=1e-4)
    assert text.perplexity == pytest.approx(math.exp(losses[1].mean()), rel=1e-4)
    assert text.loss_increase.mean == pytest.approx(float((losses[1] - losses[0]).mean()), abs=1e-4)
    # Clustered standard error, written out.
    sums = [float((k - everything.mean()).sum()) for k in kl]
    error = math.sqrt(len(kl) / (len(kl) - 1) * sum(s * s for s in sums)) / everything.numel()
    assert text.kl.standard_error == pytest.approx(error, rel=1e-3)
    assert result.pooled.kl == text.kl


def test_logits_come_in_pieces_of_bounded_size_that_make_the_whole(tiny) -> None:
    weights = ModelWeights.open(tiny("llama"))
    rows = held_out_rows(CODE, TextTokenizer(tiny("llama")), 2, 32)
    model = StreamedModel(weights, logits_bytes=4 * 320 * 10)
    model.begin(rows)
    for layer in range(model.blocks):
        model.advance(layer)
    starts, logits = zip(*model.pieces(1), strict=True)
    assert starts == (0, 10, 20, 30)
    torch.testing.assert_close(torch.cat(logits), model.logits(1, 0, 32))


def test_a_model_does_not_diverge_from_itself(tiny) -> None:
    result = measure_divergence(tiny("qwen3"), tiny("qwen3"), DivergenceOptions(rows=2, seq_len=32))
    assert [text.text for text in result.texts] == [CODE, ENGLISH]
    assert abs(result.pooled.kl.mean) < 1e-6
    assert result.pooled.top1_agreement.mean == 1.0
    assert result.pooled.tokens == 4 * 31


def test_sliding_windows_are_masked(tiny) -> None:
    """Scores of a window model differ from those of the same weights with full attention, as transformers says."""
    reference = tiny("mistral-window")
    row = held_out_rows(CODE, TextTokenizer(reference), 2, 64).tokens
    result = measure_divergence(reference, reference, DivergenceOptions(data=(CODE,), rows=2, seq_len=64))
    log_p = naive(reference, row.tolist())
    losses = [-x.gather(1, torch.tensor(r[1:])[:, None])[:, 0] for x, r in zip(log_p, row.tolist(), strict=True)]
    assert result.pooled.perplexity == pytest.approx(math.exp(torch.cat(losses).mean()), rel=1e-3)


def test_an_engine_is_measured_like_a_checkpoint(tiny, tmp_path) -> None:
    """The float engine of a model predicts as the model does, whatever pieces its logits come in."""
    from qtk.engines.build import build_engine
    from qtk.engines.options import BuildOptions

    limits = BuildOptions(max_input_len=96, max_output_len=32, max_batch_size=1)
    build_engine(tiny("llama"), tmp_path / "engine", limits)
    result = measure_divergence(tmp_path / "engine", tiny("llama"), DivergenceOptions(rows=2, seq_len=96))
    assert result.pooled.kl.mean < 1e-6
    assert result.pooled.top1_agreement.mean > 0.99
    assert result.pooled.tokens == 4 * 95
    assert result.engine_settings["backend"] == "onnxruntime"
    with pytest.raises(InputError, match="takes at most 128 tokens, --seq-len is 200"):
        measure_divergence(tmp_path / "engine", tiny("llama"), DivergenceOptions(rows=2, seq_len=200))


def test_what_an_engine_s_arithmetic_adds_is_told_apart_from_the_quantization(tiny, tmp_path, write_quantized) -> None:

    from qtk.engines.build import build_engine
    from qtk.engines.options import BuildOptions
    from qtk.quantization.scheme_model import LinearScheme

    int4 = write_quantized(tiny("llama"), tmp_path / "int4", "gptq", LinearScheme(4, 32, True))
    options, own = DivergenceOptions(rows=6, seq_len=64), {}
    for level in (0, 4):
        settings = BuildOptions(max_input_len=64, max_output_len=8, accuracy_level=level, lm_head_bits="16")
        build_engine(int4, tmp_path / f"engine{level}", settings)
        result = measure_divergence(tmp_path / f"engine{level}", tiny("llama"), options, int4)
        assert result.from_checkpoint is not None
        assert (result.pooled.rows, result.from_checkpoint.rows) == (12, 8), "a few rows of each text are enough"
        assert result.pooled.kl.mean > 1e-3
        own[level] = result.from_checkpoint.kl.mean
    assert abs(own[0]) < 1e-6
    assert 1e-6 < own[4] < result.pooled.kl.mean
    assert measure_divergence(tmp_path / "engine4", tiny("llama"), options).from_checkpoint is None


def test_standard_error_of_independent_rows_is_the_usual_one() -> None:
    values = torch.randn(400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    estimate = clustered([value[None] for value in values])
    assert estimate.mean == pytest.approx(float(values.mean()))
    assert estimate.standard_error == pytest.approx(float(values.std() / 20))


def test_held_out_modules_are_never_calibration_modules() -> None:
    held = {name for name, _ in standard_library_modules(held_out=True)}
    rest = {name for name, _ in standard_library_modules(held_out=False)}
    assert held.isdisjoint(rest)
    assert len(held) > 40
    assert len(rest) > 5 * len(held)
    # The rule is part of every published figure: these must never change sides.
    assert [is_held_out(name) for name in ("enum.py", "subprocess.py", "ast.py", "json/decoder.py")] == [
        True,
        True,
        False,
        False,
    ]


def test_held_out_rows_are_full_and_the_same_each_time(tiny) -> None:
    tokenizer = TextTokenizer(tiny("llama"))
    for source in (CODE, ENGLISH):
        rows = held_out_rows(source, tokenizer, 8, 64)
        assert rows.lengths.tolist() == [64] * 8
        assert torch.equal(rows.tokens, held_out_rows(source, tokenizer, 8, 64).tokens)
    english = tokenizer.decode(held_out_rows(ENGLISH, tokenizer, 1, 400).tokens[0].tolist())
    assert english.count(" ") > 40, "prose has words"


@pytest.mark.parametrize("rows", [1, 0])
def test_fewer_than_two_rows_are_refused(rows: int) -> None:
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        DivergenceOptions(rows=rows)


def test_what_cannot_be_compared_is_refused(tiny, tmp_path, make_tiny) -> None:
    other = make_tiny(tmp_path / "other", "llama", vocab_size=322, max_position_embeddings=64)
    with pytest.raises(InputError, match=r"vocabularies differ: 322 in .* 320 in .*; .*other takes at most 64 tokens"):
        measure_divergence(other, tiny("llama"), DivergenceOptions(rows=2, seq_len=128))
    with pytest.raises(InputError, match="neither a file nor a built-in held-out text"):
        measure_divergence(tiny("llama"), tiny("llama"), DivergenceOptions(data=("wikitext",), rows=2, seq_len=32))
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(InputError, match="does not hold any text to measure on"):
        measure_divergence(tiny("llama"), tiny("llama"), DivergenceOptions(data=(str(empty),), rows=2, seq_len=32))


def test_a_gate_on_the_divergence_wants_evidence(pair, run_qtk) -> None:
    reference, model = pair
    words = ("bench", "divergence", model, "--reference", reference, "--data", CODE, "--seq-len", 16, "--json")
    few = run_qtk(*words, "--rows", 2, "--max-kl", "1e-9")
    assert few.returncode == 3
    assert "more than 1e-09" in few.stderr
    kl = json.loads(few.stdout)["pooled"]["kl"]
    assert run_qtk(*words, "--rows", 2, "--max-kl", kl["mean"] + 20 * kl["standard_error"]).returncode == 0
    untold = run_qtk(*words, "--rows", 2, "--max-kl", kl["mean"] + kl["standard_error"] / 2)
    assert untold.returncode == 3
    assert "over 2 rows: so it may be" in untold.stderr
    assert "too few rows to tell" in untold.stderr
