"""A server of `qtk serve` in a thread of the test, and what asks it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from qtk.engines.sessions.session import EngineSession, open_session
from qtk.serving.options import ServeOptions
from qtk.serving.served_engine import ServedEngine
from qtk.serving.server import EngineServer

if TYPE_CHECKING:
    from openai import OpenAI


@dataclass(frozen=True)
class Served:
    """A running server. errors: what it ended with, once it has ended."""

    server: EngineServer
    thread: threading.Thread
    errors: list[BaseException]

    @property
    def address(self) -> str:
        return self.server.address

    def openai(self, key: str = "none") -> OpenAI:
        """A client that does not try again by itself."""
        from openai import OpenAI  # two seconds, which every worker of the tests would pay

        return OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, timeout=60)

    def metric(self, name: str) -> float:
        """One line of /metrics, by its name with its labels; 0 where it is not there yet."""
        lines = httpx.get(f"{self.address}/metrics").text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name), 0.0)

    def wait_for(self, name: str, value: float) -> None:
        """Asks until a metric has this value."""
        ask_again = threading.Event()
        for _ in range(3000):
            if self.metric(name) == value:
                return
            ask_again.wait(0.01)
        raise AssertionError(f"{name} is {self.metric(name)}, not {value}")


@contextlib.contextmanager
def served(
    engine: Path | EngineSession, options: ServeOptions = ServeOptions(port=0, model_name="tiny"), key: str = ""
) -> Iterator[Served]:
    """A server of an engine, until the end of the block. errors: what it ended with."""
    with contextlib.ExitStack() as stack:
        session = engine if isinstance(engine, EngineSession) else stack.enter_context(open_session(engine, 1))
        ready, errors = threading.Event(), list[BaseException]()
        server = EngineServer(ServedEngine(session, options, key), lambda address: ready.set())

        def run() -> None:
            try:
                server.run_to_end()
            except BaseException as error:
                errors.append(error)
            finally:
                ready.set()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            assert ready.wait(60)
            yield Served(server, thread, errors)
        finally:
            server.stop()
            thread.join(60)
            assert not thread.is_alive()
