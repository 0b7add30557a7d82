"""A TensorRT-LLM engine through TensorRT-LLM's own LLM API. UNTESTED on hardware: tested against a stand-in module only.

TensorRT-LLM owns loop, cache and sampling. Here is what turns a call into its arguments, and its stream into a Generation.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from qtk.engines.description import EngineDescription
from qtk.engines.sessions.sampling import row_seeds
from qtk.engines.sessions.session import EngineSession, Generation, OnToken
from qtk.engines.target_machine import gpu_reasons, library_reasons
from qtk.errors import InputError, MachineError, listing

INSTALL = "pip install tensorrt-llm=={} on the machine with the GPU, or use NVIDIA's tensorrt-llm/release container of that tag"


class TensorRtLlmSession(EngineSession):
    """Rows of a call are submitted together; TensorRT-LLM batches them itself."""

    prompt_bound = True

    def __init__(self, directory: Path, description: EngineDescription) -> None:
        super().__init__(directory, description)
        self._api, llm = _require(directory, description)
        # Token ids go in and come out: the tokenizer beside the engine is ours to apply.
        self._llm = llm(model=str(directory / "engine"), skip_tokenizer_init=True)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        stop: Collection[int] | None = None,
        ignore_eos: bool = False,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] | None = None,
        on_token: OnToken | None = None,
    ) -> Generation:
        start = time.perf_counter()
        self.check_call(prompts, max_new_tokens)
        ends = self.ends(stop, ignore_eos)
        streams = []
        for prompt, row_seed in zip(prompts, row_seeds(seed, len(prompts)), strict=True):
            settings = sampling_settings(max_new_tokens, ends, temperature, top_p, row_seed)
            sampling = self._api.SamplingParams(**settings)
            streams.append(self._llm.generate_async(list(prompt), sampling, streaming=True))
        tokens: list[list[int]] = [[] for _ in prompts]
        finish: list[Literal["stop", "length"]] = ["length"] * len(prompts)
        open_rows = dict(enumerate(streams))
        seconds: list[float] = []
        while open_rows:
            most = 0
            for row, stream in list(open_rows.items()):
                output = next(stream, None)
                new = [] if output is None else list(output.outputs[0].token_ids)[len(tokens[row]) :]
                most = max(most, len(new))
                if output is None or output.outputs[0].finish_reason is not None:
                    del open_rows[row]
                if _take(row, new, tokens[row], ends, on_token):
                    finish[row] = "stop"
                    if open_rows.pop(row, None) is not None:
                        stream.abort()
                elif output is not None and output.outputs[0].finish_reason == "stop":
                    finish[row] = "stop"
            now = time.perf_counter()
            if most and not seconds:
                seconds = [now - start]
            else:
                # A stream may hand over several tokens at once: each gets its share of the time.
                seconds += [(now - start) / most] * most
            start = now if most else start
        return Generation(tokens, finish, seconds[0] if seconds else 0.0, seconds[1:])


def _take(row: int, new: Sequence[int], tokens: list[int], ends: Collection[int], on_token: OnToken | None) -> bool:
    """Adds new tokens to a row until one ends it. Whether one did."""
    for token in new:
        if token in ends:
            return True
        tokens.append(token)
        if on_token is not None and on_token(row, token):
            return True
    return False


def sampling_settings(
    max_new_tokens: int, ends: Collection[int], temperature: float, top_p: float, seed: int | None
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
    if temperature > 0:
        settings |= {"temperature": temperature, "top_p": top_p}
        settings |= {} if seed is None else {"seed": seed}
    return settings


def _require(directory: Path, description: EngineDescription) -> tuple[Any, Any]:
    """(the module tensorrt_llm, its LLM class of the engine backend). MachineError, with every reason, when this machine
    cannot run the engine: no such GPU, no TensorRT-LLM, another version of it, or one that has no engines any more."""
    config = directory / "engine" / "config.json"
    try:
        needed = str(json.loads(config.read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{config} does not say which TensorRT-LLM built the engine, which alone can run it. Build it again."
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
