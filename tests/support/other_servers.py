"""Servers of other projects, started by a command line, each in an environment of its own where it is installed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx

SUPPORT = Path(__file__).resolve().parent
_PATIENCE = 600  # seconds until a server answers


def vllm_environment() -> dict[str, str]:
    """For vLLM on a processor, offline. The folder in PYTHONPATH holds the stand-in for a product that only processors with
    AVX-512 have; nothing is compiled, which would take minutes."""
    return {
        **os.environ,
        "PYTHONPATH": str(SUPPORT / "vllm_stand_in"),
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_NO_USAGE_STATS": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_USE_AOT_COMPILE": "0",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def port_is_free(port: int) -> bool:
    with socket.socket() as tried, contextlib.suppress(OSError):
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tried.bind(("", port))
        return True
    return False


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def other_server(
    words: Sequence[str], port: int, log: Path, *, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[str]:
    """The address of a server that a command starts, once it answers; it ends with the block."""
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            list(map(str, words)),
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=environment,
            start_new_session=True,
        )
        try:
            address = f"http://127.0.0.1:{port}/v1"
            _wait(process, f"{address}/models", log)
            yield address
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(address, timeout=5).status_code == 200:
                return
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        time.sleep(0.5)
    raise AssertionError(f"no answer at {address}:\n{log.read_text(errors='replace')[-3000:]}")
