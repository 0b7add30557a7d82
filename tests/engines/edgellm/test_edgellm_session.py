"""Building with Edge-LLM and running its engines, against stand-ins of its commands and of its Python runtime.

What only the real ones can show is marked gpu and runs where an engine is named: QTK_EDGELLM_ENGINE.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from support.executors import TO_THE_END

from qtk.bench.latency_run import measure
from qtk.bench.options import LatencyOptions
from qtk.engines.description import EngineDescription, EngineLimits, Stage
from qtk.engines.edgellm import tools as edgellm_tools
from qtk.engines.edgellm.tools import edgellm_bin
from qtk.engines.sessions.decoding import Decoding
from qtk.engines.sessions.options import GenerateOptions
from qtk.engines.sessions.session import open_session
from qtk.engines.sessions.text import generate_text
from qtk.errors import InputError, MachineError

# The runtime's types and calls that worker.py uses: answers each text with its bytes again, counting up, and writes to stdout, as the
# real runtime does.
RUNTIME = """
import enum, os, queue, types
class FinishReason(enum.Enum): LENGTH = 1; END_ID = 2
class ContextCacheLookupPolicy(enum.Enum): BYPASS = 1
class ContextCacheCommitPolicy(enum.Enum): PREFILL_STATE_ONLY = 1
class ContextCacheConfig: pass
class LLMGenerationRequest: pass
class Message: pass
class MessageContent:
    def __init__(self, kind, text): self.kind, self.text = kind, text
class Request:
    def __init__(self, messages): self.messages = messages
class StreamChannel:
    @classmethod
    def create(cls): return cls()
    def __init__(self): self.chunks, self.over = queue.Queue(), False
    def wait_pop(self, timeout_ms):
        try: return self.chunks.get(timeout=timeout_ms / 1000)
        except queue.Empty: return None
    def is_finished(self): return self.over
    def is_cancelled(self): return self.over
    def cancel(self): self.over = True
class LLMRuntime:
    def __init__(self, engine, media, adapters, checkpoint, cache):
        assert os.path.isfile(engine + "/llm.engine") and os.path.isdir(checkpoint), (engine, checkpoint)
        print("[native] loading", engine)
    def capture_decoding_cuda_graph(self): pass
    def handle_request(self, request):
        assert request.apply_chat_template is False and request.top_k in (0, 1)
        assert request.context_cache_lookup_policy is ContextCacheLookupPolicy.BYPASS
        ignore = os.environ.get("EDGELLM_IGNORE_EOS") == "1"
        for row, channel in zip(request.requests, request.stream_channels):
            text = row.messages[0].contents[0].text
            if text == "boom": raise RuntimeError("out of device memory")
            last, left = ord(text[-1]) % 256, request.max_generate_length
            while left:
                last, left = last + 1, left - 1
                stop = last == 130 and not ignore
                end = stop or not left
                channel.chunks.put(types.SimpleNamespace(
                    token_ids=[] if stop else [last], prompt_token_count=len(text) + (text == "off"), finished=end,
                    reason=FinishReason.END_ID if stop else FinishReason.LENGTH))
                if end: break
            channel.over = True
"""


@pytest.fixture
def tools(tmp_path, monkeypatch) -> Path:
    """An environment of Edge-LLM on PATH: its exporter (never called here), and a Python that has the stand-in runtime."""
    package = tmp_path / "site" / "tensorrt_edgellm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "runtime.py").write_text(
        "import sys\nfrom tensorrt_edgellm import native\ndef load():\n    return native\n"
    )
    (package / "native.py").write_text(RUNTIME)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "tensorrt-edgellm-export").write_text("#!/bin/sh\nexit 1\n")
    (tools / "python").write_text(f'#!/bin/sh\nPYTHONPATH={package.parent} exec {sys.executable} "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return tools


@pytest.fixture
def engine(tmp_path, write_byte_tokenizer) -> Path:
    """An engine directory as `build-engine` leaves it where tensorrt-edgellm-build ran."""
    out = tmp_path / "engine-a10"
    for inside in ("engine", "checkpoint", "onnx"):
        (out / inside).mkdir(parents=True)
    (out / "engine" / "llm.engine").write_bytes(b"plan")
    (out / "onnx" / "model.onnx").write_bytes(b"graph")
    write_byte_tokenizer(out)
    EngineDescription(
        architecture="LlamaForCausalLM",
        backend="tensorrt-edgellm",
        gpu="a10",
        compute_capability="8.6",
        dtype="float16",
        lm_head_bits=16,
        limits=EngineLimits(max_batch=2, max_input_len=64, max_output_len=32, max_positions=96),
        vocab_size=258,
        hidden_size=128,
        num_layers=2,
        num_kv_heads=2,
        head_dim=32,
        windows=(None, None),
        stop_tokens=(1,),
        stages=(Stage(file="onnx/model.onnx", layers=(0, 2), inputs=(), outputs=(), bytes=5),),
    ).save(out)
    return out


@pytest.fixture
def session(engine, tools, pretend_gpu):
    """A session on the stand-in runtime."""
    pretend_gpu("8.6")
    with open_session(engine) as session:
        yield session


def test_a_call_goes_to_its_runtime_as_text_and_comes_back_as_tokens(session) -> None:
    rows = [session.tokenizer.encode(text) for text in ("ab", "xyz")]
    generation = session.generate(rows, 4)
    assert generation.tokens == [[99, 100, 101, 102], [123, 124, 125, 126]]
    assert (generation.finish, len(generation.token_seconds)) == (["length", "length"], 3)
    assert generate_text(session, ["ab"], GenerateOptions(max_new_tokens=2)).rows[0].tokens == [99, 100]


def test_a_row_ends_where_the_runtime_or_the_caller_ends_it(session) -> None:
    (row,) = [session.tokenizer.encode("xyz")]
    ended = session.generate([row], 20)
    assert (ended.tokens, ended.finish) == ([[123, 124, 125, 126, 127, 128, 129]], ["stop"])
    assert len(session.generate([row], 20, TO_THE_END).tokens[0]) == 20, "in a process that ignores end-of-sequence"
    cut = session.generate([row], 9, Decoding(stop=frozenset({125})), lambda row, token: False)
    assert (cut.tokens, cut.finish) == ([[123, 124]], ["stop"])
    enough = session.generate([row], 9, on_token=lambda row, token: token == 124)
    assert (enough.tokens, enough.finish) == ([[123, 124]], ["stop"])


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("off", InputError, "reads the text of row 0 as 4 tokens, but the row has 3"),
        ("boom", MachineError, "out of device memory"),
        ("a" * 65, InputError, "row 0: 65 tokens; the engine takes 64"),
    ],
)
def test_a_call_that_fails_is_a_sentence_and_the_worker_outlives_it(session, text, error, words) -> None:
    session.generate([session.tokenizer.encode("ab")], 1)
    worker = session.worker_pid
    with pytest.raises(error, match=words):
        session.generate([session.tokenizer.encode(text)], 2)
    assert session.generate([session.tokenizer.encode("ab")], 1).tokens == [[99]]
    assert session.worker_pid == worker


def test_a_worker_that_is_killed_is_reported_and_replaced(session) -> None:
    row = session.tokenizer.encode("ab")
    session.generate([row], 1)
    os.kill(session.worker_pid, signal.SIGKILL)
    with pytest.raises(MachineError, match="runtime ended with exit code -9"):
        session.generate([row], 1)
    assert session.generate([row], 1).tokens == [[99]]


def test_random_prompts_are_words_that_are_read_back_as_they_were(
    engine, tools, pretend_gpu, tiny, monkeypatch
) -> None:
    pretend_gpu("8.6")
    session = open_session(engine)
    assert session.prompt_ids is not None
    assert len(session.prompt_ids) == 0, "a tokenizer of bytes has no words"
    # With letters for words the whole measure runs.
    session.prompt_ids = [i for i in range(2, 258) if session.tokenizer.decode([i]).isalpha()]  # type: ignore[assignment]
    report = measure([session], LatencyOptions(shapes="8/4", warmups=0, runs=2, seconds=0))
    assert report.engines[0].shapes[0].runs == 2


def test_words_of_a_tokenizer_that_drops_the_first_space(engine, tools, pretend_gpu) -> None:
    """SentencePiece's words begin with a space that is not seen where they come first; bare pieces run into each other."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = ["<s>", "</s>", "\u2581return", "\u2581def", "ab", "c", "\u2581", "abab"]
    vocab = [(piece, -float(i)) for i, piece in enumerate(pieces)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.save(str(engine / "tokenizer.json"))
    description = json.loads((engine / "engine.json").read_text())
    (engine / "engine.json").write_text(json.dumps({**description, "vocab_size": len(pieces)}))
    pretend_gpu("8.6")
    session = open_session(engine)
    assert session.prompt_ids is not None
    assert session.prompt_ids.tolist() == [2, 3]
    text = session.tokenizer.decode([2, 3, 3, 2])
    assert session.tokenizer.encode(text) == [2, 3, 3, 2]


def test_what_is_missing_is_said_all_at_once(engine, tmp_path, run_qtk, monkeypatch) -> None:
    monkeypatch.setattr(edgellm_tools, "CHECKOUT_BIN", tmp_path / "none")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(MachineError, match=r"(?s)GPUs here: none.*make edgellm.*tensorrt-edgellm\[export\]==0\.11\.0"):
        open_session(engine)
    done = run_qtk("bench", "latency", engine)
    assert (done.returncode, done.stdout) == (4, "")


def test_its_commands_are_found_in_the_given_directory_on_path_or_in_the_checkout(tools, tmp_path, monkeypatch) -> None:
    assert edgellm_bin() == tools
    assert edgellm_bin(tools) == tools
    assert edgellm_bin(tmp_path) is None, "what is asked for is not replaced by another"
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(edgellm_tools, "CHECKOUT_BIN", tools)
    assert edgellm_bin() == tools
    monkeypatch.setattr(edgellm_tools, "CHECKOUT_BIN", tmp_path / "none")
    assert edgellm_bin() is None


@pytest.mark.gpu
def test_a_real_engine_generates() -> None:
    if "QTK_EDGELLM_ENGINE" not in os.environ:
        pytest.skip("QTK_EDGELLM_ENGINE names no engine built by tensorrt-edgellm-build")
    session = open_session(os.environ["QTK_EDGELLM_ENGINE"])
    assert session.prompt_ids is not None
    prompt = session.prompt_ids[:16].tolist()
    first, second = (session.generate([prompt], 16, TO_THE_END).tokens for _ in range(2))
    assert first == second
    assert len(first[0]) == 16
