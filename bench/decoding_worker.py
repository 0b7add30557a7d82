"""One runtime held ready by bench/compare_decoding.py, in a process (and an environment) of its own.

python bench/decoding_worker.py qtk|genai|llama.cpp MODEL THREADS
Reads one JSON request a line ({"prompt": [ids], "new_tokens": n}), generates greedily without ending early, answers
with one JSON line: {"prefill": seconds to the first token, "decode": seconds for the others, "tokens": [ids]}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

Generate = Callable[[list[int], int], tuple[float, float, list[int]]]


def qtk(model: str, threads: int) -> Generate:
    from qtk.engines.sessions.decoding import Decoding
    from qtk.engines.sessions.session import DecoderSession

    session, decoding = DecoderSession.open(model, threads), Decoding(ignore_eos=True)

    def generate(prompt: list[int], new_tokens: int) -> tuple[float, float, list[int]]:
        made = session.generate([prompt], new_tokens, decoding)
        return made.prefill_seconds, sum(made.token_seconds), made.tokens[0]

    return generate


def genai(model: str, threads: int) -> Generate:
    """ONNX Runtime GenAI; its thread count stands in genai_config.json (written by compare_decoding.py)."""
    import onnxruntime_genai as og

    loaded = og.Model(model)

    def generate(prompt: list[int], new_tokens: int) -> tuple[float, float, list[int]]:
        length = len(prompt) + new_tokens
        start = time.perf_counter()
        parameters = og.GeneratorParams(loaded)
        parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = og.Generator(loaded, parameters)
        generator.append_tokens(prompt)
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            generator.generate_next_token()
        end = time.perf_counter()
        return first - start, end - first, [int(t) for t in generator.get_sequence(0)[len(prompt) :]]

    return generate


def llama_cpp(model: str, threads: int) -> Generate:
    """llama.cpp through its C API: no Python but one call and one argmax a token.

    LLAMA_AS_STORED in the environment: weights are not repacked for the processor. 0.3.36 is slower so, but repacked for
    AMX it ends in a segmentation fault on some virtual machines.
    """
    import ctypes

    import llama_cpp as api
    import numpy as np

    api.llama_backend_init()
    quiet = api.llama_log_callback(lambda level, text, data: None)
    api.llama_log_set(quiet, ctypes.c_void_p(0))
    how = api.llama_model_default_params()
    how.use_extra_bufts = "LLAMA_AS_STORED" not in os.environ
    loaded = api.llama_model_load_from_file(model.encode(), how)
    vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(loaded))

    def generate(prompt: list[int], new_tokens: int) -> tuple[float, float, list[int]]:
        settings = api.llama_context_default_params()
        settings.n_ctx = len(prompt) + new_tokens
        settings.n_batch = max(len(prompt), 32)
        settings.n_threads = settings.n_threads_batch = threads
        context = api.llama_init_from_model(loaded, settings)
        start = time.perf_counter()

        def next_token(ids: list[int]) -> int:
            array = (api.llama_token * len(ids))(*ids)
            if api.llama_decode(context, api.llama_batch_get_one(array, len(ids))):
                raise RuntimeError("llama_decode failed")
            return int(np.ctypeslib.as_array(api.llama_get_logits(context), (vocab_size,)).argmax())

        tokens = [next_token(prompt)]
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            tokens.append(next_token(tokens[-1:]))
        end = time.perf_counter()
        api.llama_free(context)
        generate.keep = quiet  # type: ignore[attr-defined]  # the callback must outlive every call
        return first - start, end - first, tokens

    return generate


RUNTIMES = {"qtk": qtk, "genai": genai, "llama.cpp": llama_cpp}


def main(kind: str, model: str, threads: str) -> None:
    generate = RUNTIMES[kind](model, int(threads))
    print(json.dumps({"ready": kind}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        prefill, decode, tokens = generate(request["prompt"], request["new_tokens"])
        print(json.dumps({"prefill": prefill, "decode": decode, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
