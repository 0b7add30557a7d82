"""Holds one TensorRT Edge-LLM engine ready, in Edge-LLM's own environment: its runtime pins packages that qtk cannot have.

ENV/bin/python worker.py ENGINE CHECKPOINT        UNTESTED on hardware: tested with a stand-in module only.
Imports nothing from qtk. A line of JSON in, a line of JSON out:
{"prompts": [text], "max_new_tokens": n, "temperature": t, "top_p": p, "seeds": [s or null a prompt]} ->
{"rows": [{"tokens": [ids], "prompt_tokens": n, "stopped": bool}], "seconds": [to the first token, to the next, ...]}
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from typing import Any

WAIT_MS = 200


def main(engine: str, checkpoint: str) -> None:
    # The native runtime prints to stdout, which must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    api = importlib.import_module("tensorrt_edgellm.runtime").load()
    runtime = api.LLMRuntime(engine, "", {}, checkpoint, api.ContextCacheConfig())
    runtime.capture_decoding_cuda_graph()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer = generate(api, runtime, json.loads(line))
        except Exception as error:  # whatever the runtime raises is reported by the other side
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def generate(api: Any, runtime: Any, call: dict[str, Any]) -> dict[str, Any]:
    """Runs one call. The runtime decodes all rows in one batch, in a thread of its own; each row has a channel."""
    start = time.perf_counter()
    channels = [api.StreamChannel.create() for _ in call["prompts"]]
    request = generation_request(api, call)
    request.stream_channels = channels
    failed: list[Exception] = []

    def run() -> None:
        try:
            runtime.handle_request(request)
        except Exception as error:
            failed.append(error)
            for channel in channels:
                channel.cancel()

    thread = threading.Thread(target=run)
    thread.start()
    rows: list[dict[str, Any]] = [{"tokens": [], "prompt_tokens": None, "stopped": False} for _ in channels]
    open_rows = set(range(len(rows)))
    seconds: list[float] = []
    while open_rows and not failed:
        most = max(read(api, channels[row], rows[row], row, open_rows) for row in sorted(open_rows))
        if most:
            now = time.perf_counter()
            # The first reading is the time to the first token; later ones share their time among the tokens they bring.
            seconds += [(now - start) / most] * most if seconds else [now - start]
            start = now
    thread.join()
    if failed:
        raise failed[0]
    return {"rows": rows, "seconds": seconds}


def read(api: Any, channel: Any, row: dict[str, Any], number: int, open_rows: set[int]) -> int:
    """Adds the new tokens of a channel to its row; closes the row at its end. Returns the number of new tokens."""
    chunk = channel.wait_pop(timeout_ms=WAIT_MS)
    if chunk is None:
        if channel.is_finished() or channel.is_cancelled():
            open_rows.discard(number)
        return 0
    row["tokens"] += list(chunk.token_ids)
    if chunk.prompt_token_count >= 0:
        row["prompt_tokens"] = chunk.prompt_token_count
    if chunk.finished:
        row["stopped"] = chunk.reason != api.FinishReason.LENGTH
        open_rows.discard(number)
    return len(chunk.token_ids)


def generation_request(api: Any, call: dict[str, Any]) -> Any:
    """The call in the runtime's types: texts as they are, without a chat template, and nothing reused from an earlier call."""
    request = api.LLMGenerationRequest()
    request.requests = []
    for text, seed in zip(call["prompts"], call["seeds"], strict=True):
        message = api.Message()
        message.role = "user"
        message.has_content = True
        message.contents = [api.MessageContent("text", text)]
        row = api.Request(messages=[message])
        row.sampling_seed = seed
        request.requests = [*request.requests, row]
    greedy = not call["temperature"]
    request.temperature = 1.0 if greedy else call["temperature"]
    request.top_p = 1.0 if greedy else call["top_p"]
    request.top_k = 1 if greedy else 0
    request.max_generate_length = call["max_new_tokens"]
    request.apply_chat_template = False
    request.add_generation_prompt = False
    request.context_cache_lookup_policy = api.ContextCacheLookupPolicy.BYPASS
    request.context_cache_commit_policy = api.ContextCacheCommitPolicy.PREFILL_STATE_ONLY
    return request


if __name__ == "__main__":
    main(*sys.argv[1:])
