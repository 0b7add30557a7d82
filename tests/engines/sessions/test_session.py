"""The generation loop over ONNX Runtime: what transformers generates, step by step, for every architecture."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.executors import TO_THE_END, changed, open_on_processor, recorded
from support.tiny_models import VARIANTS
from support.word_tokenizer import write_word_tokenizer

from qtk.engines.build import build_engine
from qtk.engines.options import BuildOptions
from qtk.engines.sessions.decoding import Decoding
from qtk.engines.sessions.executor import Forward
from qtk.engines.sessions.options import GenerateOptions
from qtk.engines.sessions.sampling import Sampler
from qtk.engines.sessions.session import DecoderSession
from qtk.engines.sessions.text import TextPieces, encode_prompt, generate_text
from qtk.errors import InputError
from qtk.models.tokenizer import TextTokenizer
from qtk.quantization.scheme_model import LinearScheme

VERIFY = BuildOptions(accuracy_level=0, max_input_len=384, max_output_len=128)


def open_engine(model: Path, out: Path, options: BuildOptions = VERIFY, **settings: Any) -> DecoderSession:
    """An engine of `model`, opened with settings of its executor (see OnnxRuntimeExecutor)."""
    build_engine(model, out, options)
    return open_on_processor(out, **settings)


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


# Both graphs of a one-row session: ONNX Runtime's own operators, and the portable graph as the file holds it, from which a
# GPU's plan is compiled.
both_graphs = pytest.mark.parametrize("rewrite", [True, False], ids=["rewritten", "portable"])


@both_graphs
@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_text_and_each_cached_step_equal_transformers(tiny, tmp_path, rewrite: bool, variant: str) -> None:
    """On two prompts: tokens, and the logits of the prefill and of every decode step from the cache; then the same tokens
    scored as one row."""
    opened = open_engine(tiny(variant), tmp_path / "engine", rewrite=rewrite)
    assert opened.executor.uses_rewrite == (rewrite and variant != "qwen3")  # type: ignore[attr-defined]
    session, runs = recorded(opened)
    for ids in (prompt(40), prompt(7, seed=3)):
        expected, steps = reference(tiny(variant), ids, 64)
        runs.clear()
        generation = session.generate([ids], 64, TO_THE_END)
        assert generation.tokens == [expected]
        assert (len(generation.token_seconds), generation.finish) == (63, ["length"])
        np.testing.assert_allclose(np.array([logits[0, -1] for logits in runs]), steps, atol=3e-4, rtol=1e-3)
    logits = session.logits([ids + expected[:-1]])
    np.testing.assert_allclose(logits[0, len(ids) - 1 :], steps, atol=3e-4, rtol=1e-3)


@both_graphs
@pytest.mark.parametrize("variant", ["llama3-rope", "llama-linear-rope", "mistral-window", "qwen2", "qwen3"])
def test_int4_of_each_architecture_generates_what_its_dequantized_model_does(
    tiny, tmp_path, rewrite: bool, variant: str, write_dequantized, write_quantized
) -> None:
    quantized = write_quantized(tiny(variant), tmp_path / "q", "gptq", LinearScheme(4, 32, True))
    expected, steps = reference(write_dequantized(quantized, tmp_path / "float"), prompt(30), 32)
    session, runs = recorded(open_engine(quantized, tmp_path / "engine", rewrite=rewrite))
    assert session.generate([prompt(30)], 32, TO_THE_END).tokens == [expected]
    np.testing.assert_allclose(np.array([logits[0, -1] for logits in runs]), steps, atol=3e-4, rtol=1e-3)


@pytest.mark.parametrize(("group", "symmetric"), [(32, True), (64, False), (128, True)])
def test_int4_at_level_0_generates_what_its_dequantized_model_does(
    tiny, tmp_path, group: int, symmetric: bool, write_dequantized, write_quantized
) -> None:
    quantized = write_quantized(tiny(), tmp_path / "q", "gptq", LinearScheme(4, group, symmetric))
    expected, _ = reference(write_dequantized(quantized, tmp_path / "float"), prompt(40), 64)
    session = open_engine(quantized, tmp_path / "engine")
    assert session.description.lm_head_bits == 16
    assert session.generate([prompt(40)], 64, TO_THE_END).tokens == [expected]


def test_level_4_rounds_activations_and_level_0_can_be_asked_of_the_same_engine(
    tiny, tmp_path, write_quantized
) -> None:
    quantized = write_quantized(tiny(), tmp_path / "q", "gptq", LinearScheme(4, 32, True))
    build_engine(quantized, tmp_path / "engine", BuildOptions())
    fast = DecoderSession.open(tmp_path / "engine", 2)
    exact = DecoderSession.open(tmp_path / "engine", 2, fast.description.model_copy(update={"accuracy_level": 0}))
    assert (fast.description.accuracy_level, fast.description.lm_head_bits) == (4, 8)
    difference = np.abs(fast.logits([prompt(40)]) - exact.logits([prompt(40)])).max()
    assert 1e-4 < difference < 0.5


@pytest.mark.parametrize("variant", ["llama", "mistral-window"])
def test_unequal_prompts_in_a_batch_are_exact(tiny, tmp_path, variant: str) -> None:
    """Chunks of 16 and cache steps of 8 to 24, so that rows end in different chunks and the cache grows in the middle."""
    session = open_engine(tiny(variant), tmp_path / variant, chunk=16, cache_steps=(8, 24))
    prompts = [prompt(length, seed=length) for length in (5, 61, 16, 33)]
    alone = [session.generate([p], 40, TO_THE_END).tokens[0] for p in prompts]
    assert session.generate(prompts, 40, TO_THE_END).tokens == alone
    assert alone == [reference(tiny(variant), p, 40)[0] for p in prompts]


def test_calls_do_not_see_each_other(tiny, tmp_path) -> None:
    session = open_engine(tiny(), tmp_path / "engine")
    first = session.generate([prompt(50)], 20, TO_THE_END).tokens
    session.generate([prompt(300, seed=4)], 20, TO_THE_END)
    session.logits([prompt(20, seed=5), prompt(7, seed=6)])
    assert session.generate([prompt(50)], 20, TO_THE_END).tokens == first


def test_stop_tokens_end_each_row_by_itself(tiny, tmp_path) -> None:
    session = open_engine(tiny(), tmp_path / "engine")
    prompts = [prompt(20, seed=1), prompt(30, seed=2)]
    whole = session.generate(prompts, 30, TO_THE_END).tokens
    ends = {whole[0][5]}
    stopped = session.generate(prompts, 30, Decoding(stop=frozenset(ends)))
    for row, tokens in enumerate(whole):
        cut = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
        assert stopped.tokens[row] == tokens[:cut]
        assert stopped.finish[row] == ("stop" if cut < len(tokens) else "length")
    assert session.description.stop_tokens == (1,)
    heard: list[tuple[int, int]] = []
    session.generate(prompts, 3, TO_THE_END, lambda row, token: heard.append((row, token)))
    assert [t for r, t in heard if r == 1] == whole[1][:3]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_are_done_leave_the_batch_and_the_others_are_not_disturbed(tiny, tmp_path, temperature) -> None:
    """The cache grows in between, so that rows are moved in old and in new memory; then a call with the first batch."""
    sizes: list[int] = []

    def count(logits: np.ndarray, forward: Forward) -> np.ndarray:
        sizes.append(len(forward.input_ids))
        return logits

    session = changed(open_engine(tiny("mistral-window"), tmp_path / "engine", cache_steps=(8, 24)), count)
    prompts = [prompt(length, seed=length) for length in (9, 40, 23, 31, 12)]
    lengths = [30, 4, 12, 1, 40]
    decoding = Decoding(temperature=temperature, ignore_eos=True, seed=1)
    whole = session.generate(prompts, 40, decoding).tokens
    sizes.clear()
    left = dict(enumerate(lengths))

    def done(row: int, token: int) -> bool:
        left[row] -= 1
        return left[row] == 0

    generation = session.generate(prompts, 40, decoding, done)
    assert generation.tokens == [tokens[:length] for tokens, length in zip(whole, lengths, strict=True)]
    assert generation.finish == ["stop"] * 5
    assert sizes == [5] + [sum(length > step for length in lengths) for step in range(1, 40)]
    assert session.generate(prompts, 40, decoding).tokens == whole


def test_sampling_is_reproducible_and_bounded_by_the_nucleus(tiny, tmp_path) -> None:
    session = open_engine(tiny(), tmp_path / "engine")

    def draw(seed: int | None, temperature: float = 1.0, top_p: float = 1.0) -> list[list[int]]:
        decoding = Decoding(temperature=temperature, top_p=top_p, ignore_eos=True, seed=seed)
        return session.generate([prompt(10)], 20, decoding).tokens

    assert draw(1) == draw(1) != draw(2)
    assert draw(3, top_p=1e-9) == draw(None, temperature=0.0), "a nucleus of one token is greedy"


@pytest.mark.parametrize("wrong", [{"top_p": 0.0}, {"top_p": 1.1}, {"temperature": -0.1}])
def test_a_decoding_that_is_not_a_distribution_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="top_p"):
        Decoding(**wrong)  # type: ignore[arg-type]


def test_a_row_s_seed_gives_the_same_draws_in_every_place_of_a_batch(tiny, tmp_path) -> None:
    session = open_engine(tiny(), tmp_path / "engine")
    prompts = [prompt(length, seed=length) for length in (9, 14, 11)]

    def draws(order: list[int]) -> list[list[int]]:
        decoding = Decoding(temperature=1.0, ignore_eos=True, seed=tuple(100 + row for row in order))
        return session.generate([prompts[row] for row in order], 12, decoding).tokens

    first, second, third = draws([0, 1, 2])
    assert draws([2, 0]) == [third, first]
    assert draws([1]) == [second]


def test_rows_are_seeded_for_runtimes_that_draw_by_themselves() -> None:
    assert Decoding(seed=7).row_seeds(3) == [7, 8, 9]
    assert Decoding(seed=(4, 2)).row_seeds(2) == [4, 2]
    assert Decoding().row_seeds(2) == [None, None]


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
    assert len(session.generate([prompt(20)], 10, TO_THE_END).tokens[0]) == 10


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
    chat = tokenizer.decode(encode_prompt(tokenizer, "hi", GenerateOptions(chat_format="codefuse")), skip_special=False)
    assert chat == "<s>human\nhi\n<s>bot\n"
    chat = tokenizer.decode(
        encode_prompt(tokenizer, "hi", GenerateOptions(chat_format="model", system="be brief")), skip_special=False
    )
    assert chat == "<s>system\nbe brief</s><s>user\nhi</s><s>assistant\n"


@pytest.fixture(params=["byte-level", "sentencepiece"])
def tokenizer(request, tmp_path, write_byte_tokenizer) -> TextTokenizer:
    """Both kinds of decoder: bytes one by one, and words with their space, of which the first word loses its own."""
    {"byte-level": write_byte_tokenizer, "sentencepiece": write_word_tokenizer}[request.param](tmp_path)
    return TextTokenizer(tmp_path)


@pytest.mark.parametrize(
    "text", ["naïve\n🙂 = 'ü'\n", "def f(x):\n    return 'é'\n\n        x\n", "  two spaces", "a\n", " \n b"]
)
def test_pieces_of_text_come_whole_and_make_the_text(tokenizer: TextTokenizer, text: str) -> None:
    pieces, ids = TextPieces(tokenizer), tokenizer.encode(text)
    shown = [pieces.add(token) for token in ids]
    assert "".join(shown) + pieces.rest() == tokenizer.decode(ids) == text
    assert not any("\ufffd" in piece for piece in shown)


def test_half_a_character_at_the_end_comes_as_the_rest(tmp_path, write_byte_tokenizer) -> None:
    write_byte_tokenizer(tmp_path)
    tokenizer = TextTokenizer(tmp_path)
    pieces, ids = TextPieces(tokenizer), tokenizer.encode("x🙂")[:-1]
    assert [pieces.add(token) for token in ids] == ["x", "", "", ""]
    assert pieces.rest() == "\ufffd"


@pytest.mark.slow
def test_smollm2_equals_transformers_float_and_int4(smollm2, tmp_path, write_dequantized, write_quantized) -> None:
    tokenizer = TextTokenizer(smollm2)
    texts = ["def fibonacci(n):\n", "The capital of France is", "import numpy as np\n\n\ndef softmax(x):"]
    quantized = write_quantized(smollm2, tmp_path / "q", "gptq", LinearScheme(4, 64, True))
    float_of = {smollm2: smollm2, quantized: write_dequantized(quantized, tmp_path / "float")}
    for number, (source, meaning) in enumerate(float_of.items()):
        session = open_engine(source, tmp_path / f"engine{number}")
        for text in texts:
            ids = tokenizer.encode(text)
            expected, steps = reference(meaning, ids, 64)
            assert session.generate([ids], 64, TO_THE_END).tokens == [expected]
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
        sampler = Sampler(Decoding(temperature=1.0, top_p=0.8, seed=1))
        drawn = sampler(np.tile(logits, (400, 1)), range(400)).tolist()
        assert set(drawn) <= nucleus
        assert len(set(drawn)) > len(nucleus) / 40
