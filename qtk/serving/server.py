"""Serves an engine until it is told to stop: listens, says where, and finishes what runs before it ends."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn

from qtk.engines.sessions.session import open_session
from qtk.errors import InputError
from qtk.progress import warn
from qtk.serving.app import ServingApp
from qtk.serving.options import KEY_VARIABLE, ServeOptions
from qtk.serving.served_engine import ServedEngine


class EngineServer(uvicorn.Server):
    """uvicorn with one application. SIGTERM: what runs is finished, what waits is refused, and the process ends with 0."""

    def __init__(self, served: ServedEngine, on_start: Callable[[str], None] = lambda address: None) -> None:
        """on_start is given the address ("http://127.0.0.1:8000") once it can be asked. InputError for an address that
        cannot be listened on, and as of `ServedEngine.runner`."""
        self.app = ServingApp(served, self._stop)
        self._on_start = on_start
        options = served.options
        # The application tells of its own bugs; what uvicorn would log besides are the requests that a second Ctrl-C ends.
        super().__init__(
            uvicorn.Config(
                self.app.asgi,
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                lifespan="on",
            )
        )
        self._socket = _listen(options.host, options.port)
        host = f"[{options.host}]" if ":" in options.host else options.host
        self.address = f"http://{host}:{self._socket.getsockname()[1]}"

    def run_to_end(self) -> None:
        """Serves until it is stopped. Raises what the engine raised, where it failed."""
        try:
            self.run(sockets=[self._socket])
        finally:
            self._socket.close()
            self.app.close()
        if (failure := self.app.scheduler.failure) is not None:
            raise failure

    def _stop(self) -> None:
        self.should_exit = True

    def stop(self) -> None:
        """Ends the server as SIGTERM does. For any thread."""
        self._stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_start(self.address)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.app.scheduler.drain()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGTERM:  # uvicorn would raise it again at the end; stopping so is not an error
            self._stop()
        else:
            super().handle_exit(sig, frame)


def serve_engine(engine: Path, options: ServeOptions, on_start: Callable[[str], None]) -> None:
    """Opens an engine directory and serves it until SIGTERM or Ctrl-C. on_start is given a line that says where, and how to ask.

    InputError for what is not an engine, or an address that cannot be used; MachineError where the engine cannot run here.
    """
    with open_session(engine, options.threads) as session:
        served = ServedEngine(session, options, os.environ.get(KEY_VARIABLE, ""))
        assert served.tokenizer  # an engine without one is refused before the server starts
        if not served.api_key and not _is_loopback(options.host):
            warn(f"anybody who reaches {options.host} can use the engine: set {KEY_VARIABLE} to ask for a key")
        EngineServer(served, lambda address: on_start(_greeting(served, address))).run_to_end()


def _greeting(served: ServedEngine, address: str) -> str:
    body = json.dumps({"model": served.name, "prompt": "def fibonacci(n):", "max_tokens": 32})
    key = f' -H "Authorization: Bearer ${KEY_VARIABLE}"' if served.api_key else ""
    return (
        f"Serving {served.name} on {address}/v1. Try: "
        f"curl {address}/v1/completions{key} -H 'Content-Type: application/json' -d '{body}'"
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InputError(
            f"{host}:{port} cannot be listened on: {error.strerror or error}. Name another address with --host or --port."
        ) from None
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
