"""Ten thousand requests of every kind leave no files, threads or memory behind. For the night: it takes minutes."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import httpx
import openai
import psutil
import pytest

from qtk.engines.build import build_engine
from qtk.engines.options import BuildOptions

REQUESTS = 10_000
# Requests after which the server is as large as it gets: buffers of every shape are there, and the allocator's arenas.
WARM = 2_000
# What a leak of a kilobyte a request would be of the rest.
MOST_GROWTH = 8 << 20


class Clients:
    """Sends requests of every kind, each of which ends as it should."""

    def __init__(self, address: str) -> None:
        self._url = f"{address}/v1/completions"
        self._http = httpx.Client(timeout=120, limits=httpx.Limits(max_connections=16))
        self._openai = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120)
        self._kinds = (self.whole, self.streamed, self.chat, self.refused, self.left, self.drawn, self.long_body)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self._openai.close()

    def send(self, number: int) -> None:
        self._kinds[number % len(self._kinds)](number)

    def _body(self, number: int, **more: Any) -> dict[str, Any]:
        prompt = [2 + number % 300] * (1 + number % 40)
        return {"model": "engine", "prompt": prompt, "max_tokens": 1 + number % 16, "temperature": 0, **more}

    def whole(self, number: int) -> None:
        self._taken(self._http.post(self._url, json=self._body(number, logprobs=2, echo=True)))

    def drawn(self, number: int) -> None:
        self._taken(self._http.post(self._url, json=self._body(number, temperature=1, seed=number, n=2)))

    def streamed(self, number: int) -> None:
        with self._http.stream("POST", self._url, json=self._body(number, stream=True, stop=["zz"])) as answer:
            assert self._taken(answer, read=True).endswith("data: [DONE]")

    def chat(self, number: int) -> None:
        messages: Any = [{"role": "user", "content": "a" * (number % 20)}]
        with contextlib.suppress(openai.RateLimitError):
            self._openai.chat.completions.create(model="engine", messages=messages, max_tokens=5)

    def refused(self, number: int) -> None:
        assert self._http.post(self._url, content=b"{").status_code == 400

    def long_body(self, number: int) -> None:
        assert self._http.post(self._url, content=b"x" * 5000).status_code == 413

    def left(self, number: int) -> None:
        body = self._body(number, stream=True, max_tokens=60, ignore_eos=True)
        with self._http.stream("POST", self._url, json=body) as answer:
            next(answer.iter_lines())

    @staticmethod
    def _taken(answer: httpx.Response, *, read: bool = False) -> str:
        assert answer.status_code in (200, 429)
        if read and answer.status_code == 200:
            return "\n".join(answer.iter_lines()).strip()
        return "data: [DONE]"


@pytest.mark.nightly
def test_ten_thousand_requests_leave_nothing_behind(tiny, tmp_path: Path) -> None:
    options = BuildOptions(accuracy_level=0, max_input_len=64, max_output_len=64, max_batch_size=4)
    build_engine(tiny(), tmp_path / "engine", options)
    words = ["serve", str(tmp_path / "engine"), "--port", "0", "--threads", "1", "--max-body", "4096"]
    with subprocess.Popen([sys.executable, "-m", "qtk", *words], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = re.findall(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
        watched = psutil.Process(process.pid)
        send_all(address, range(WARM))
        before = at_rest(watched, address)
        send_all(address, range(WARM, REQUESTS))
        after = at_rest(watched, address)
        process.terminate()
    print(f"files {before['files']} -> {after['files']}, threads {before['threads']} -> {after['threads']}, "
          f"memory {before['memory'] / 1e6:.1f} -> {after['memory'] / 1e6:.1f} MB")  # fmt: skip
    assert process.returncode == 0
    assert after["files"] <= before["files"]
    assert after["threads"] <= before["threads"]
    assert after["memory"] <= before["memory"] + MOST_GROWTH


def send_all(address: str, numbers: range) -> None:
    with Clients(address) as clients, ThreadPoolExecutor(12) as threads:
        list(threads.map(clients.send, numbers))


def at_rest(process: psutil.Process, address: str) -> dict[str, int]:
    """What the server holds once it has nothing to do and its clients have gone: only its listening socket is left."""
    ask_again = threading.Event()
    for _ in range(600):
        if "qtk_rows_running 0.0" in httpx.get(f"{address}/metrics").text and len(process.net_connections()) == 1:
            break
        ask_again.wait(0.1)
    return {"files": process.num_fds(), "threads": process.num_threads(), "memory": process.memory_info().rss}
