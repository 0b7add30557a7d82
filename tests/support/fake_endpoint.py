"""A small server that answers as an endpoint of OpenAI's API might, or should not."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What is answered. events: of a stream, each JSON or a text as it is; content: of any other answer. hang: whether the
    server then waits until it is closed, instead of ending the answer."""

    status: int = 200
    events: tuple[Any, ...] | None = None
    content: bytes = b""
    kind: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    hang: bool = False


def refusal(status: int, message: str, **headers: str) -> Reply:
    """OpenAI's error object."""
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Reply(status, content=json.dumps({"error": {"message": message}}).encode(), headers=named)


def stream(
    tokens: int, prompt_tokens: int | None, *, usage: bool = True, pieces: int | None = None, done: bool = True
) -> Reply:
    """A stream of so many tokens in so many pieces, which says how many there were."""
    count = tokens if pieces is None else pieces
    events: list[Any] = [{"choices": [{"text": f" {n}", "finish_reason": None}]} for n in range(count)]
    if usage:
        counted = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens}
        events.append({"choices": [], "usage": counted})
    return Reply(events=(*events, *(["[DONE]"] if done else [])))


@dataclass
class FakeEndpoint:
    """A running one. asked: the bodies that it was sent, in their order."""

    answer: Callable[[Body], Reply]
    models: Reply
    address: str = ""
    asked: list[Body] = field(default_factory=list)


@contextlib.contextmanager
def fake_endpoint(
    answer: Callable[[Body], Reply], models: tuple[str, ...] | Reply = ("fake",)
) -> Iterator[FakeEndpoint]:
    """Serves until the end of the block. answer: of completions. models: the names that it lists, or its whole answer."""
    listed = models
    if not isinstance(listed, Reply):
        listed = Reply(content=json.dumps({"data": [{"id": name} for name in models]}).encode())  # type: ignore[union-attr]
    fake, closed = FakeEndpoint(answer, listed), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(fake.models)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.asked.append(body)
            self._send(fake.answer(body))

        def _send(self, reply: Reply) -> None:
            self.send_response(reply.status)
            self.send_header("Content-Type", "text/event-stream" if reply.events is not None else reply.kind)
            for name, value in reply.headers:
                self.send_header(name, value)
            self.end_headers()
            for event in reply.events or ():
                data = event if isinstance(event, str) else json.dumps(event)
                self.wfile.write(f"data: {data}\n\n".encode())
            self.wfile.write(reply.content)
            self.wfile.flush()
            if reply.hang:
                closed.wait(60)

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake.address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield fake
    finally:
        closed.set()
        server.shutdown()
        server.server_close()
        thread.join()
