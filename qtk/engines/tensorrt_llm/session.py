"""Runs a TensorRT-LLM engine with TensorRT-LLM's own LLM API. UNTESTED on hardware: tested with a stand-in module only.

TensorRT-LLM owns the loop, the cache and sampling. This file turns a call into its arguments, and its streams into a
Generation.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from qtk.engines.description import EngineDescription
from qtk.engines.sessions.decoding import GREEDY, Decoding
from qtk.engines.sessions.session import EngineSession, GeneratedRows, Generation, OnToken
from qtk.engines.target_machine import gpu_reasons, library_reasons
from qtk.errors import InputError, MachineError, listing

INSTALL = "pip install tensorrt-llm=={} on the machine with the GPU, or use NVIDIA's tensorrt-llm/release container of that tag"


class TensorRtLlmSession(EngineSession):
    """Rows of a call are submitted together; TensorRT-LLM batches them itself."""

    prompt_bound = True

    def __init__(self, directory: Path, description: EngineDescription) -> None:
        super().__init__(directory, description)
        self._api, llm = _require(directory, description)
        # Token ids go in and come out: qtk applies the tokenizer beside the engine.
        self._llm = llm(model=str(directory / "engine"), skip_tokenizer_init=True)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        decoding: Decoding = GREEDY,
        on_token: OnToken | None = None,
    ) -> Generation:
        start = time.perf_counter()
        self.check_call(prompts, max_new_tokens)
        ends = self.ends(decoding)
        streams = {}
        for row, seed in enumerate(decoding.row_seeds(len(prompts))):
            sampling = self._api.SamplingParams(**sampling_settings(max_new_tokens, ends, decoding, seed))
            streams[row] = self._llm.generate_async(list(prompts[row]), sampling, streaming=True)
        generated = GeneratedRows(len(prompts), ends, on_token)
        seconds: list[float] = []
        while streams:
            most = 0
            for row, stream in list(streams.items()):
                result = next(stream, None)
                output = None if result is None else result.outputs[0]
                new = [] if output is None else list(output.token_ids)[len(generated.tokens[row]) :]
                most = max(most, len(new))
                for token in new:
                    generated.take(row, token)
                done = output is None or output.finish_reason is not None
                if not done and row not in generated.open_rows:
                    stream.abort()
                if output is not None and output.finish_reason == "stop":
                    generated.end(row)
                if done or row not in generated.open_rows:
                    del streams[row]
            now = time.perf_counter()
            if most and not seconds:
                seconds = [now - start]
            else:
                # A stream may hand over several tokens at once: each gets its share of the time.
                seconds += [(now - start) / most] * most
            start = now if most else start
        return Generation(generated.tokens, generated.finish, seconds[0] if seconds else 0.0, seconds[1:])


def sampling_settings(
    max_new_tokens: int, ends: Collection[int], decoding: Decoding, seed: int | None
) -> dict[str, Any]:
    """Arguments of TensorRT-LLM's SamplingParams. Without sampling settings it takes the most likely token."""
    first, *others = sorted(ends) or [-1]
    settings: dict[str, Any] = {
        "max_tokens": max_new_tokens,
        "end_id": first,
        "pad_id": max(first, 0),
        "detokenize": False,
    }
    settings |= {"stop_token_ids": others} if others else {}
    settings |= {} if ends else {"ignore_eos": True}
    if decoding.temperature > 0:
        settings |= {"temperature": decoding.temperature, "top_p": decoding.top_p}
        settings |= {} if seed is None else {"seed": seed}
    return settings


def _require(directory: Path, description: EngineDescription) -> tuple[Any, Any]:
    """(the module tensorrt_llm, its LLM class of the engine backend). MachineError, with every reason, when this machine
    cannot run the engine: no such GPU, no TensorRT-LLM, another version of it, or a version without an engine backend."""
    config = directory / "engine" / "config.json"
    try:
        needed = str(json.loads(config.read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{config} does not say which TensorRT-LLM built the engine, and only that version runs it. Build it again."
        ) from None
    reasons = gpu_reasons(description)
    module: Any = None
    try:
        module = importlib.import_module("tensorrt_llm")
    except ImportError:
        reasons += library_reasons("tensorrt-llm", None, needed, INSTALL.format(needed))
    else:
        reasons += library_reasons("tensorrt-llm", str(module.__version__), needed, INSTALL.format(needed))
    if reasons:
        raise MachineError(f"{directory} cannot run here:\n{listing(reasons)}")
    # From 1.0 on the LLM class of the package itself is the PyTorch one; engines have their own.
    name = "tensorrt_llm" if needed.startswith("0.") else "tensorrt_llm._tensorrt_engine"
    return module, importlib.import_module(name).LLM
