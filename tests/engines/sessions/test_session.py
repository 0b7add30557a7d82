"""The generation loop over ONNX Runtime: what transformers generates, step by step, for every architecture."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import VARIANTS, write_byte_tokenizer
from support.quantized_checkpoint import write_dequantized, write_quantized

from qtk.engines.build import build_engine
from qtk.engines.onnxruntime import executor as onnxruntime_executor
from qtk.engines.options import BuildOptions
from qtk.engines.sessions.sampling import Sampler
from qtk.engines.sessions.session import DecoderSession
from qtk.engines.sessions.text import GenerateOptions, TextPieces, encode_prompt, generate_text
from qtk.errors import InputError
from qtk.quantization.scheme_model import LinearScheme

VERIFY = BuildOptions(accuracy_level=0, max_input_len=384, max_output_len=128)


def open_engine(model: Path, out: Path, options: BuildOptions = VERIFY) -> DecoderSession:
    build_engine(model, out, options)
    return DecoderSession.open(out, 2)


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(2, 320, length).tolist()


def reference(model_dir: Path, ids: list[int], new_tokens: int) -> tuple[list[int], np.ndarray]:
    """Greedy tokens by transformers with its cache, and the logits of each step [new_tokens, vocab]."""
    return _reference(model_dir, tuple(ids), new_tokens)


@functools.cache
def _reference(model_dir: Path, ids: tuple[int, ...], new_tokens: int) -> tuple[list[int], np.ndarray]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    tokens, steps, past, current = [], [], None, torch.tensor([ids])
    with torch.no_grad():
        for _ in range(new_tokens):
            out = model(current, past_key_values=past, use_cache=True)
            past = out.past_key_values
            steps.append(out.logits[0, -1].numpy())
            tokens.append(int(steps[-1].argmax()))
            current = torch.tensor([[tokens[-1]]])
    return tokens, np.array(steps)


@pytest.fixture(params=[True, False], ids=["rewritten", "portable"])
def graph(request, monkeypatch) -> str:
    """Both graphs of a one-row session: ONNX Runtime's own operators, and the portable graph as the file holds it, which is
    what a GPU's plan is compiled from."""
    if not request.param:
        monkeypatch.setattr(onnxruntime_executor, "rewritten", lambda path, description: None)
    return "rewritten" if request.param else "portable"


def recorded(session: DecoderSession) -> list[np.ndarray]:
    """Filled with the logits of each run from here on."""
    seen: list[np.ndarray] = []
    run = session._executor.run
    session._executor.run = lambda step: seen.append(run(step).copy()) or seen[-1]  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_text_and_each_cached_step_equal_transformers(tiny, tmp_path, graph: str, variant: str) -> None:
    """On two prompts: tokens, and the logits of the prefill and of every decode step from the cache; then the same tokens
    scored as one row."""
    session = open_engine(tiny(variant), tmp_path / "engine")
    assert session._executor._rewritten == (graph == "rewritten" and variant != "qwen3")  # type: ignore[attr-defined]
    seen = recorded(session)
    for ids in (prompt(40), prompt(7, seed=3)):
        expected, steps = reference(tiny(variant), ids, 64)
        seen.clear()
        made = session.generate([ids], 64, ignore_eos=True)
        assert made.tokens == [expected]
        assert (len(made.token_seconds), made.finish) == (63, ["length"])
        np.testing.assert_allclose(np.array([s[0, -1] for s in seen]), steps, atol=3e-4, rtol=1e-3)
    logits = session.logits([ids + expected[:-1]])
    np.testing.assert_allclose(logits[0, len(ids) - 1 :], steps, atol=3e-4, rtol=1e-3)


@pytest.mark.parametrize("variant", ["llama3-rope", "llama-linear-rope", "mistral-window", "qwen2", "qwen3"])
def test_int4_of_each_architecture_generates_what_its_dequantized_model_does(
    tiny, tmp_path, graph: str, variant: str
) -> None:
    quantized = write_quantized(tiny(variant), tmp_path / "q", "gptq", LinearScheme(4, 32, True))
    expected, steps = reference(write_dequantized(quantized, tmp_path / "float"), prompt(30), 32)
    session = open_engine(quantized, tmp_path / "engine")
    seen = recorded(session)
    assert session.generate([prompt(30)], 32, ignore_eos=True).tokens == [expected]
    np.testing.assert_allclose(np.array([s[0, -1] for s in seen]), steps, atol=3e-4, rtol=1e-3)


@pytest.mark.parametrize(("group", "symmetric"), [(32, True), (64, False), (128, True)])
def test_int4_at_level_0_generates_what_its_dequantized_model_does(tiny, tmp_path, group: int, symmetric: bool) -> None:
    quantized = write_quantized(tiny(), tmp_path / "q", "gptq", LinearScheme(4, group, symmetric))
    expected, _ = reference(write_dequantized(quantized, tmp_path / "float"), prompt(40), 64)
    session = open_engine(quantized, tmp_path / "engine")
    assert session.description.lm_head_bits == 16
    assert session.generate([prompt(40)], 64, ignore_eos=True).tokens == [expected]


def test_level_4_rounds_activations_and_level_0_can_be_asked_of_the_same_engine(tiny, tmp_path) -> None:
    quantized = write_quantized(tiny(), tmp_path / "q", "gptq", LinearScheme(4, 32, True))
    build_engine(quantized, tmp_path / "engine", BuildOptions())
    fast = DecoderSession.open(tmp_path / "engine", 2)
    exact = DecoderSession.open(tmp_path / "engine", 2, accuracy_level=0)
    assert (fast.description.accuracy_level, fast.description.lm_head_bits) == (4, 8)
    difference = np.abs(fast.logits([prompt(40)]) - exact.logits([prompt(40)])).max()
    assert 1e-4 < difference < 0.5


def test_unequal_prompts_in_a_batch_are_exact(tiny, tmp_path, monkeypatch) -> None:
    """Chunks of 16 and cache steps of 8 to 24, so that rows end in different chunks and the cache grows in the middle."""
    monkeypatch.setattr(onnxruntime_executor.OnnxRuntimeExecutor, "chunk_tokens", 16)
    monkeypatch.setattr(onnxruntime_executor.OnnxRuntimeExecutor, "chunk_logits", 16)
    monkeypatch.setattr(onnxruntime_executor, "CACHE_STEPS", (8, 24))
    for variant in ("llama", "mistral-window"):
        session = open_engine(tiny(variant), tmp_path / variant)
        prompts = [prompt(length, seed=length) for length in (5, 61, 16, 33)]
        alone = [session.generate([p], 40, ignore_eos=True).tokens[0] for p in prompts]
        assert session.generate(prompts, 40, ignore_eos=True).tokens == alone
        assert alone == [reference(tiny(variant), p, 40)[0] for p in prompts]


def test_calls_do_not_see_each_other(tiny, tmp_path) -> None:
    session = open_engine(tiny(), tmp_path / "engine")
    first = session.generate([prompt(50)], 20, ignore_eos=True).tokens
    session.generate([prompt(300, seed=4)], 20, ignore_eos=True)
    session.logits([prompt(20, seed=5), prompt(7, seed=6)])
    assert session.generate([prompt(50)], 20, ignore_eos=True).tokens == first


def test_stop_tokens_end_each_row_by_itself(tiny, tmp_path) -> None:
    session = open_engine(tiny(), tmp_path / "engine")
    prompts = [prompt(20, seed=1), prompt(30, seed=2)]
    whole = session.generate(prompts, 30, ignore_eos=True).tokens
    ends = {whole[0][5]}
    stopped = session.generate(prompts, 30, stop=ends)
    for row, tokens in enumerate(whole):
        cut = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
        assert stopped.tokens[row] == tokens[:cut]
        assert stopped.finish[row] == ("stop" if cut < len(tokens) else "length")
    assert session.description.stop_tokens == (1,)
    heard: list[tuple[int, int]] = []
    session.generate(prompts, 3, ignore_eos=True, on_token=lambda row, token: heard.append((row, token)))
    assert [t for r, t in heard if r == 1] == whole[1][:3]


def test_rows_that_are_done_leave_the_batch_and_the_others_are_not_disturbed(tiny, tmp_path, monkeypatch) -> None:
    """The cache grows in between, so that rows are moved in old and in new memory; then a call with the first batch."""
    monkeypatch.setattr(onnxruntime_executor, "CACHE_STEPS", (8, 24))
    session = open_engine(tiny("mistral-window"), tmp_path / "engine")
    prompts = [prompt(length, seed=length) for length in (9, 40, 23, 31, 12)]
    lengths = [30, 4, 12, 1, 40]
    sizes: list[int] = []
    run = session._executor.run
    monkeypatch.setattr(session._executor, "run", lambda step: sizes.append(len(step.input_ids)) or run(step))
    for temperature in (0.0, 1.0):
        whole = session.generate(prompts, 40, ignore_eos=True, temperature=temperature, seed=1).tokens
        sizes.clear()
        left = dict(enumerate(lengths))

        def done(row: int, token: int, left: dict[int, int] = left) -> bool:
            left[row] -= 1
            return left[row] == 0

        made = session.generate(prompts, 40, ignore_eos=True, temperature=temperature, seed=1, on_token=done)
        assert made.tokens == [tokens[:length] for tokens, length in zip(whole, lengths, strict=True)]
        assert made.finish == ["stop"] * 5
        assert sizes == [5] + [sum(length > step for length in lengths) for step in range(1, 40)]


def test_sampling_is_reproducible_and_bounded_by_the_nucleus(tiny, tmp_path) -> None:
    session = open_engine(tiny(), tmp_path / "engine")
    draw = lambda seed, **more: session.generate([prompt(10)], 20, ignore_eos=True, seed=seed, **more).tokens  # noqa: E731
    assert draw(1, temperature=1.0) == draw(1, temperature=1.0) != draw(2, temperature=1.0)
    assert draw(3, temperature=1.0, top_p=1e-9) == draw(None), "a nucleus of one token is greedy"
    with pytest.raises(InputError, match="top_p"):
        draw(1, temperature=1.0, top_p=0.0)


def test_impossible_calls_are_refused_with_every_reason(tiny, tmp_path) -> None:
    session = open_engine(
        tiny(), tmp_path / "engine", BuildOptions(max_input_len=20, max_output_len=10, max_batch_size=3)
    )
    with pytest.raises(InputError) as caught:
        session.generate([[], prompt(25), [5, 320]], 10)
    message = str(caught.value)
    assert "row 0 is empty" in message
    assert "row 1: 25 tokens and 10 new ones; the engine holds 30" in message
    assert "row 2 holds a token outside 0..319" in message
    with pytest.raises(InputError, match="4 rows; the engine takes 1 to 3"):
        session.generate([[5]] * 4, 1)
    assert len(session.generate([prompt(20)], 10, ignore_eos=True).tokens[0]) == 10


def test_float16_graph_runs_too(tiny, tmp_path) -> None:
    half = open_engine(tiny("qwen3"), tmp_path / "half", VERIFY.model_copy(update={"dtype": "float16"}))
    full = open_engine(tiny("qwen3"), tmp_path / "full")
    assert np.abs(half.logits([prompt(40)]) - full.logits([prompt(40)])).max() < 0.05


def test_text_goes_in_and_comes_out_in_pieces(tiny, tmp_path) -> None:
    session = open_engine(tiny(), tmp_path / "engine")
    pieces: list[str] = []
    options = GenerateOptions(max_new_tokens=30)
    result = generate_text(session, ["def f():"], options, on_text=pieces.append)
    assert "".join(pieces) == result.rows[0].text
    assert result.rows[0].prompt_tokens == 8
    tokenizer = session.tokenizer
    chat = tokenizer.decode(encode_prompt(tokenizer, "hi", GenerateOptions(chat="codefuse")), skip_special=False)
    assert chat == "<s>human\nhi\n<s>bot\n"
    chat = tokenizer.decode(
        encode_prompt(tokenizer, "hi", GenerateOptions(chat="model", system="be brief")), skip_special=False
    )
    assert chat == "<s>system\nbe brief</s><s>user\nhi</s><s>assistant\n"


def test_characters_of_several_tokens_come_whole(tmp_path) -> None:
    write_byte_tokenizer(tmp_path)
    from qtk.models.tokenizer import TextTokenizer

    tokenizer = TextTokenizer(tmp_path)
    text = "naïve\n🙂 = 'ü'\n"
    stream = TextPieces(tokenizer)
    pieces = [stream.add(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) + stream.rest() == text
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.slow
def test_smollm2_equals_transformers_float_and_int4(smollm2, tmp_path) -> None:
    from qtk.models.tokenizer import TextTokenizer

    tokenizer = TextTokenizer(smollm2)
    texts = ["def fibonacci(n):\n", "The capital of France is", "import numpy as np\n\n\ndef softmax(x):"]
    quantized = write_quantized(smollm2, tmp_path / "q", "gptq", LinearScheme(4, 64, True))
    float_of = {smollm2: smollm2, quantized: write_dequantized(quantized, tmp_path / "float")}
    for number, (source, meaning) in enumerate(float_of.items()):
        session = open_engine(source, tmp_path / f"engine{number}")
        for text in texts:
            ids = tokenizer.encode(text)
            expected, steps = reference(meaning, ids, 64)
            assert session.generate([ids], 64, ignore_eos=True).tokens == [expected]
            np.testing.assert_allclose(
                session.logits([ids + expected[:-1]])[0, len(ids) - 1 :], steps, atol=1e-3, rtol=1e-3
            )


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p() -> None:
    """Far more tokens than are sorted at first, in a peaked and in a flat distribution."""
    random = np.random.default_rng(0)
    for scale in (4.0, 0.1):
        logits = (scale * random.standard_normal(5000)).astype(np.float32)
        share = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum()
        order = np.argsort(-share)
        nucleus = set(order[: int(np.searchsorted(np.cumsum(share[order]), 0.8)) + 1].tolist())
        sampler = Sampler(1.0, 0.8, 1)
        drawn = sampler(np.tile(logits, (400, 1)), range(400)).tolist()
        assert set(drawn) <= nucleus
        assert len(set(drawn)) > len(nucleus) / 40
