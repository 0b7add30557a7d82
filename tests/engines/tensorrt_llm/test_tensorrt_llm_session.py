"""The session over TensorRT-LLM's LLM API, against a stand-in module that records what it is given and streams like it.

What only the real one can show is marked gpu and runs where an engine is named: QTK_TENSORRT_LLM_ENGINE.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

import pytest
from support.executors import TO_THE_END

from qtk.bench.latency_run import measure
from qtk.bench.options import AcceptOptions, LatencyOptions
from qtk.engines.description import EngineDescription, EngineLimits, Stage
from qtk.engines.sessions.decoding import Decoding
from qtk.engines.sessions.options import GenerateOptions
from qtk.engines.sessions.session import open_session
from qtk.engines.sessions.text import generate_text
from qtk.errors import InputError, MachineError
from qtk.release.accept import accept

# Streams each prompt's last token + 1, + 2, ...: `step` tokens at a time, with the cumulative ids of the real one.
STAND_IN = """
import types
__version__ = "1.1.0"
calls = []
class SamplingParams:
    def __init__(self, **settings): self.__dict__.update(settings)
class Stream:
    def __init__(self, prompt, sampling):
        self.ids, self.left, self.sampling, self.aborted = [], sampling.max_tokens, sampling, False
        self.last, self.finish = prompt[-1], None
    def __iter__(self): return self
    def __next__(self):
        if self.finish is not None or self.aborted: raise StopIteration
        for _ in range(min(STEP, self.left)):
            self.last, self.left = (self.last + 1) % 258, self.left - 1
            if self.last == self.sampling.end_id:
                self.finish = "stop"
                break
            self.ids.append(self.last)
        if self.left == 0 and self.finish is None: self.finish = "length"
        return types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=self.ids, finish_reason=self.finish)])
    def abort(self): self.aborted = True
"""
ENGINE = """
import tensorrt_llm
class LLM:
    def __init__(self, **settings): tensorrt_llm.calls.append(settings)
    def generate_async(self, prompt, sampling, streaming):
        assert streaming and isinstance(prompt, list)
        stream = tensorrt_llm.Stream(prompt, sampling)
        tensorrt_llm.calls.append((prompt, vars(sampling), stream))
        return stream
"""


@pytest.fixture
def engine(tmp_path, write_byte_tokenizer) -> Path:
    """An engine directory as `build-engine` leaves it where trtllm-build ran."""
    out = tmp_path / "engine-a10"
    (out / "engine").mkdir(parents=True)
    (out / "engine" / "rank0.engine").write_bytes(b"plan")
    (out / "engine" / "config.json").write_text(json.dumps({"version": "1.1.0"}))
    write_byte_tokenizer(out)
    EngineDescription(
        architecture="LlamaForCausalLM",
        backend="tensorrt-llm",
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
        stages=(Stage(file="engine/rank0.engine", layers=(0, 2), inputs=(), outputs=(), bytes=4),),
    ).save(out)
    return out


@pytest.fixture
def machine(tmp_path, monkeypatch, pretend_gpu):
    """machine("8.6", step=1): a machine with such a GPU and the stand-in package, which streams `step` tokens at a time."""

    def make(sm: str = "8.6", *, version: str = "1.1.0", step: int = 1) -> None:
        pretend_gpu(sm)
        package = tmp_path / "site" / "tensorrt_llm"
        package.mkdir(parents=True)
        package.joinpath("__init__.py").write_text(STAND_IN.replace("STEP", str(step)).replace("1.1.0", version))
        package.joinpath("_tensorrt_engine.py").write_text(ENGINE)
        monkeypatch.syspath_prepend(package.parent)
        importlib.invalidate_caches()

    yield make
    for name in ("tensorrt_llm", "tensorrt_llm._tensorrt_engine"):
        sys.modules.pop(name, None)


def test_a_call_becomes_arguments_and_its_stream_a_generation(engine, machine) -> None:
    machine()
    session = open_session(engine)
    heard: list[tuple[int, int]] = []
    made = session.generate([[5, 10], [7, 250]], 6, on_token=lambda row, token: heard.append((row, token)))
    assert made.tokens == [[11, 12, 13, 14, 15, 16], [251, 252, 253, 254, 255, 256]]
    assert (made.finish, len(made.token_seconds)) == (["length", "length"], 5)
    assert heard[:3] == [(0, 11), (1, 251), (0, 12)]
    opened, first, second = importlib.import_module("tensorrt_llm").calls
    assert opened == {"model": str(engine / "engine"), "skip_tokenizer_init": True}
    assert (first[0], second[0]) == ([5, 10], [7, 250])
    assert first[1] == {"max_tokens": 6, "end_id": 1, "pad_id": 1, "detokenize": False}


def test_stop_tokens_eos_and_sampling_settings(engine, machine) -> None:
    machine(step=3)
    session = open_session(engine)
    calls = importlib.import_module("tensorrt_llm").calls
    # 257 is followed by 0 and 1, the stop token of the model.
    assert session.generate([[256]], 9).tokens == [[257, 0]]
    whole = session.generate([[256]], 9, Decoding(temperature=0.7, top_p=0.9, ignore_eos=True, seed=3))
    assert whole.tokens == [[257, 0, 1, 2, 3, 4, 5, 6, 7]]
    assert calls[-1][1] == {
        "max_tokens": 9, "end_id": -1, "pad_id": 0, "detokenize": False, "ignore_eos": True, "temperature": 0.7,
        "top_p": 0.9, "seed": 3,
    }  # fmt: skip
    # Three tokens come at once: the first three count as the prompt's time, six more steps follow.
    assert (len(whole.token_seconds), whole.finish) == (6, ["length"])
    stopped = session.generate([[10], [30]], 9, Decoding(stop=frozenset({15, 300})))
    assert (stopped.tokens[0], stopped.finish) == ([11, 12, 13, 14], ["stop", "length"])
    assert (calls[-1][1]["end_id"], calls[-1][1]["stop_token_ids"]) == (15, [300])
    enough = session.generate([[10]], 9, on_token=lambda row, token: token == 12)
    assert (enough.tokens, enough.finish, calls[-1][2].aborted) == ([[11, 12]], ["stop"], True)
    with pytest.raises(InputError, match="3 rows; the engine takes 1 to 2"):
        session.generate([[5]] * 3, 1)


def test_latency_text_and_acceptance_run_on_it(engine, machine) -> None:
    machine()
    session = open_session(engine)
    report = measure([session], LatencyOptions(shapes="16/8,4/1", warmups=0, runs=2, seconds=0))
    assert [(shape.runs, len(shape.call_seconds)) for shape in report.engines[0].shapes] == [(2, 2), (2, 2)]
    text = generate_text(session, ["ab"], GenerateOptions(max_new_tokens=3))
    assert text.rows[0].text == "cde"
    record = accept(engine, AcceptOptions(shapes="16/8", seconds=0, reference=engine))
    assert {check.name: check.passed for check in record.checks} == {
        "repeatability": True,
        "whole length": True,
        "text": True,
    }
    not_run = ["decode against scoring", "batch", "batched decoding", "divergence", "memory"]
    assert list(record.checks_not_run) == not_run
    assert record.checks_not_run["divergence"] == "the engine's runtime gives tokens, not logits"


def test_what_the_machine_lacks_is_said_all_at_once(engine, machine, run_qtk) -> None:
    done = run_qtk("generate", engine, "--prompt", "x")
    assert (done.returncode, done.stdout) == (4, "")
    assert "a GPU of SM 8.6; GPUs here: none" in done.stderr
    assert "pip install tensorrt-llm==1.1.0" in done.stderr
    machine("8.9", version="1.0.0")
    with pytest.raises(
        MachineError, match=r"(?s)NVIDIA A10 \(8\.9\).*compiled by tensorrt-llm 1\.1\.0, and this machine has 1\.0\.0"
    ):
        open_session(engine)


def test_an_engine_that_does_not_say_its_version_or_takes_no_such_prompt(engine, machine) -> None:
    machine()
    with pytest.raises(InputError, match="row 0: 65 tokens; the engine takes 64"):
        open_session(engine).generate([[5] * 65], 1)
    (engine / "engine" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="does not say which TensorRT-LLM built"):
        open_session(engine)


@pytest.mark.gpu
def test_a_real_engine_generates() -> None:
    if "QTK_TENSORRT_LLM_ENGINE" not in os.environ:
        pytest.skip("QTK_TENSORRT_LLM_ENGINE names no engine built by trtllm-build")
    session = open_session(os.environ["QTK_TENSORRT_LLM_ENGINE"])
    first, second = (session.generate([[5, 6, 7, 8]], 16, TO_THE_END).tokens for _ in range(2))
    assert first == second
    assert len(first[0]) == 16
