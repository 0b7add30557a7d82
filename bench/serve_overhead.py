"""What `qtk serve` adds to `qtk generate`, and what many clients at once get.

python bench/serve_overhead.py ENGINE [--seconds 120] [--shape 64/64] [--clients 8]

ENGINE is a CPU engine of at least as many rows as clients (`qtk build-engine ... --max-batch-size 8`). Each round makes one
call of the engine's session in this process, as `qtk generate` does, the same request to a server in a process of its own,
whole and streamed, and then one from every client at once. Rounds alternate their order. Whole answers are asked for with
the client of the package openai, streams with that of `qtk bench latency`, all on this machine. Prompts are random token
ids, the most likely token is taken, and no token ends a text.
Prints a table for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import queue
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from openai import OpenAI

from qtk.bench.endpoint.client import Endpoint, EndpointClient, streamed_answer
from qtk.bench.options import parse_shapes
from qtk.engines.sessions.decoding import Decoding
from qtk.engines.sessions.session import EngineSession, open_session
from qtk.machine import machine

_REST_SECONDS = 0.05  # a runtime's threads spin for a moment after a call


@dataclass(frozen=True)
class Ways:
    """The ways to the same tokens, each a function that takes prompts and returns how many tokens came."""

    generate: Callable[[list[list[int]]], int]
    whole: Callable[[list[list[int]]], int]
    streamed: Callable[[list[list[int]]], int]


def ways(session: EngineSession, endpoint: Endpoint, model: str, new_tokens: int) -> Ways:
    more = {"ignore_eos": True}
    client = OpenAI(base_url=endpoint.address, api_key=endpoint.key or "none", max_retries=0)

    def generate(prompts: list[list[int]]) -> int:
        return len(session.generate(prompts, new_tokens, Decoding(ignore_eos=True)).tokens[0])

    def whole_of(prompt: list[int]) -> int:
        answer = client.completions.create(
            model=model, prompt=prompt, max_tokens=new_tokens, temperature=0, extra_body=more
        )
        assert answer.usage is not None
        return answer.usage.completion_tokens

    idle: queue.SimpleQueue[EndpointClient] = queue.SimpleQueue()

    def streamed_of(prompt: list[int]) -> int:
        asked = EndpointClient(endpoint) if idle.empty() else idle.get()
        body = {"model": model, "prompt": prompt, "max_tokens": new_tokens, "temperature": 0, "stream": True, **more}
        answer = streamed_answer(asked, {**body, "stream_options": {"include_usage": True}})
        idle.put(asked)
        return answer.tokens or 0

    def at_once(one: Callable[[list[int]], int]) -> Callable[[list[list[int]]], int]:
        def all_of(prompts: list[list[int]]) -> int:
            if len(prompts) == 1:
                return one(prompts[0])
            with ThreadPoolExecutor(len(prompts)) as threads:
                return sum(threads.map(one, prompts))

        return all_of

    return Ways(generate, at_once(whole_of), at_once(streamed_of))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--shape", default="64/64")
    parser.add_argument("--clients", type=int, default=8)
    settings = parser.parse_args()
    [(prompt_tokens, new_tokens)] = parse_shapes(settings.shape)
    random = np.random.default_rng(0)
    command = [sys.executable, "-m", "qtk", "serve", str(settings.engine), "--port", "0", "--model-name", "engine"]
    with (
        open_session(settings.engine) as session,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
    ):
        assert server.stdout is not None
        address = re.findall(r"http://[\d.:]+\d", server.stdout.readline())[0]
        endpoint = Endpoint(f"{address}/v1", os.environ.get("QTK_API_KEY", ""))
        by = ways(session, endpoint, "engine", new_tokens)
        rows = {
            "`qtk generate`": (by.generate, 1),
            "`qtk serve`, whole answers": (by.whole, 1),
            "`qtk serve`, streamed": (by.streamed, 1),
            f"`qtk serve`, streamed to {settings.clients} clients at once": (by.streamed, settings.clients),
        }
        seconds: dict[str, list[float]] = {name: [] for name in rows}
        processor: dict[str, float] = dict.fromkeys(rows, 0.0)
        serving, here = psutil.Process(server.pid), psutil.Process()
        start, rounds = time.perf_counter(), 0
        for round_number in itertools.count():
            rounds = round_number - 1
            if rounds >= 3 and (time.perf_counter() - start) * (1 + 1 / round_number) > settings.seconds:
                break
            prompts = random.integers(0, session.vocab_size, (settings.clients, prompt_tokens)).tolist()
            for name, (way, count) in list(rows.items())[:: 1 if round_number % 2 else -1]:
                time.sleep(_REST_SECONDS)
                of = here if way is by.generate else serving
                begin, begun = time.perf_counter(), processor_seconds(of)
                tokens = way(prompts[:count])
                taken = time.perf_counter() - begin
                assert tokens == count * new_tokens, f"{name}: {tokens} tokens"
                if round_number:  # the first round warms up
                    seconds[name].append(taken)
                    processor[name] += processor_seconds(of) - begun
        server.terminate()
    about = machine()
    print(f"{about.processor}, {about.cores} cores; {settings.shape}, {rounds} rounds")
    tokens = {name: count * new_tokens for name, (_, count) in rows.items()}
    per_token = {name: total * 1e3 / tokens[name] / rounds for name, total in processor.items()}
    print_table(seconds, tokens, new_tokens, per_token)


def processor_seconds(process: psutil.Process) -> float:
    """Processor time that a process has used, all threads together."""
    times = process.cpu_times()
    return float(times.user + times.system)


def print_table(
    seconds: dict[str, list[float]], tokens: dict[str, int], new_tokens: int, per_token: dict[str, float]
) -> None:
    """Rates, each against `qtk generate` by pairs of neighbouring calls, with standard errors, and the processor time of the
    process that holds the engine."""
    first = np.array(next(iter(seconds.values())))
    print("| | tokens/s | times `qtk generate` | ms a token more | processor ms a token |\n|---|---:|---:|---:|---:|")
    for name, times in seconds.items():
        taken = np.array(times)
        logs = np.log(first / taken) + math.log(tokens[name] / new_tokens)
        more = (taken - first) / new_tokens * 1e3
        root = math.sqrt(len(taken))
        ratio = math.exp(float(logs.mean()))
        against = f"{ratio:.3f} ± {ratio * float(logs.std(ddof=1)) / root:.3f}"
        alone = tokens[name] == new_tokens and taken is not first
        extra = f"{float(more.mean()):.2f} ± {float(more.std(ddof=1)) / root:.2f}" if alone else ""
        print(f"| {name} | {tokens[name] / float(taken.mean()):.1f} | {against} | {extra} | {per_token[name]:.2f} |")


if __name__ == "__main__":
    main()
