"""Asks an endpoint of OpenAI's API and hears its answer as it comes.

On the standard library's HTTP client: one connection for each thread that asks, so that the clock of one request sees nothing
of another. Format: server-sent events (WHATWG HTML, 9.2) as OpenAI's reference of completions and chat completions describes.
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

from qtk.errors import InputError, MachineError, QtkError

_SAID = 300  # characters of an endpoint's own message that are repeated


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, and how. address: as it was given, such as "http://127.0.0.1:8000/v1". key: sent as a bearer token, never
    written anywhere. patience: seconds without a byte."""

    address: str
    key: str = field(default="", repr=False)
    patience: float = 120.0

    def __post_init__(self) -> None:
        """InputError for an address that is not one of an endpoint, or that holds a password."""
        parts = urlsplit(self.address)
        try:
            port_reads = parts.port is None or parts.port > 0
        except ValueError:
            port_reads = False
        if parts.scheme not in ("http", "https") or not parts.hostname or not port_reads:
            raise InputError(f"{self.address!r} is not the address of an endpoint, such as http://127.0.0.1:8000/v1.")
        if parts.username or parts.password:
            raise InputError("The address holds a name or a password: give the key in QTK_API_KEY instead.")

    @property
    def host(self) -> str:
        """The host with its port, as a figure is labelled with it."""
        return urlsplit(self.address).netloc

    def path(self, name: str) -> str:
        """The path of "/completions" and the like."""
        return urlsplit(self.address).path.rstrip("/") + name


class RefusedByEndpoint(InputError):
    """The endpoint answered with an error. status: of HTTP; said: its own message; retry_after: seconds, where it says so."""

    def __init__(self, message: str, status: int, said: str, retry_after: float | None) -> None:
        super().__init__(message)
        self.status, self.said, self.retry_after = status, said, retry_after


class EndpointDown(MachineError):
    """The endpoint cannot be reached, does not answer in time, or breaks off."""


class EndpointClient:
    """One connection to an endpoint, kept between requests. For one thread."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._connection: http.client.HTTPConnection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hangs up, which also ends a request that is being answered."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, name: str) -> Any:
        """The JSON at a path below the address. Errors as of `events`; InputError for an answer that is not JSON."""
        with self._sentences():
            response = self._send("GET", name, None)
            return self._json(response.read())

    def events(self, name: str, body: Mapping[str, Any]) -> Iterator[Any]:
        """The events of a request that streams, each as it comes. An iterator that is not read to its end must be closed;
        the connection is then given up.

        RefusedByEndpoint for an answer that is an error; EndpointDown where there is none; InputError for one that is not
        a stream as OpenAI's.
        """
        with self._sentences():
            response = self._send("POST", name, body)
            kind = response.headers.get_content_type()
            if kind != "text/event-stream":
                said = _short(response.read(4096))
                self.close()
                raise InputError(
                    f"{self.endpoint.address} does not stream as OpenAI's API does: it answered {kind}: {said}"
                )
            complete = False
            try:
                for line in response:
                    if not line.startswith(b"data:"):
                        continue
                    data = line[5:].strip()
                    if data == b"[DONE]":
                        complete = True
                        response.read()
                        return
                    event = self._json(data)
                    if isinstance(event, dict) and "error" in event:
                        raise EndpointDown(f"{self.endpoint.address} broke off: {_message(event)}")
                    yield event
                raise EndpointDown(f"{self.endpoint.address} ended its answer without saying that it is complete.")
            finally:
                if not complete:
                    self.close()

    def _send(self, method: str, name: str, body: Mapping[str, Any] | None) -> http.client.HTTPResponse:
        """Sends a request, on a new connection where the other side has closed the old one meanwhile."""
        kept = self._connection is not None
        try:
            return self._checked(self._ask(method, name, body))
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            self.close()
            if not kept:
                raise
            return self._checked(self._ask(method, name, body))

    def _ask(self, method: str, name: str, body: Mapping[str, Any] | None) -> http.client.HTTPResponse:
        if self._connection is None:
            self._connection = self._connect()
        headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
        if self.endpoint.key:
            headers["Authorization"] = f"Bearer {self.endpoint.key}"
        content = None if body is None else json.dumps(body).encode()
        self._connection.request(method, self.endpoint.path(name), content, headers)
        return self._connection.getresponse()

    def _connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.endpoint.address)
        assert parts.hostname is not None
        if parts.scheme == "https":
            return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=self.endpoint.patience)
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=self.endpoint.patience)

    def _checked(self, response: http.client.HTTPResponse) -> http.client.HTTPResponse:
        if 200 <= response.status < 300:
            return response
        content = response.read(65536)
        self.close()
        said = _message_of(content)
        address, after = self.endpoint.address, response.headers.get("Retry-After", "")
        retry_after = float(after) if after.replace(".", "", 1).isdigit() else None
        advice = {
            401: " Set QTK_API_KEY to its key.",
            403: " Set QTK_API_KEY to its key.",
            404: " The address ends in /v1, as a rule.",
            429: " It is busy: ask with fewer clients, or later.",
        }.get(response.status, "")
        message = f"{address} answered with status {response.status}: {said}{advice}"
        if response.status >= 500:
            raise EndpointDown(message)
        raise RefusedByEndpoint(message, response.status, said, retry_after)

    def _json(self, content: bytes) -> Any:
        try:
            return json.loads(content)
        except ValueError:
            self.close()
            raise InputError(
                f"{self.endpoint.address} is not an endpoint of OpenAI's API: it answered {_short(content)}"
            ) from None

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        """Turns the library's errors into sentences."""
        address = self.endpoint.address
        try:
            yield
        except QtkError:
            raise
        except TimeoutError:
            self.close()
            raise EndpointDown(
                f"{address} did not answer within {self.endpoint.patience:g} seconds (--patience)."
            ) from None
        except ssl.SSLError as error:
            self.close()
            raise EndpointDown(f"{address} cannot be spoken to over TLS: {error.reason or error}.") from None
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise EndpointDown(f"{address} cannot be reached, or broke off: {_reason(error)}.") from None


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__} {error}".strip().rstrip(".")


def _short(content: bytes) -> str:
    text = " ".join(content.decode(errors="replace").split())
    return repr(text[:_SAID]) + (" ..." if len(text) > _SAID else "")


def _message_of(content: bytes) -> str:
    try:
        return _message(json.loads(content))
    except ValueError:
        return _short(content)


def _message(body: Any) -> str:
    """The message of an error object, in OpenAI's form or one like it."""
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message", error.get("detail")) if isinstance(error, dict) else error
    text = " ".join(str(message if message is not None else body).split())
    return text[:_SAID]


@dataclass(frozen=True)
class StreamedAnswer:
    """What came of one streamed request, in seconds from when it was sent.

    pieces: when each piece of the text came. tokens, prompt_tokens: as the endpoint counts them; None where it does not say.
    """

    pieces: tuple[float, ...]
    seconds: float
    tokens: int | None
    prompt_tokens: int | None


def streamed_answer(client: EndpointClient, body: Mapping[str, Any], begin: float | None = None) -> StreamedAnswer:
    """Sends a completion request and hears it to its end. begin: time.perf_counter() from when the seconds count, where that is
    before now. Errors as of `EndpointClient.events`."""
    begin = time.perf_counter() if begin is None else begin
    pieces: list[float] = []
    usage: Mapping[str, Any] = {}
    for event in client.events("/completions", body):
        try:
            usage = event.get("usage") or usage
            if _holds_token(event):
                pieces.append(time.perf_counter() - begin)
        except (AttributeError, TypeError):
            client.close()
            raise InputError(
                f"{client.endpoint.address} does not stream as OpenAI's API does: it sent {event!r:.100}."
            ) from None
    seconds = time.perf_counter() - begin
    return StreamedAnswer(tuple(pieces), seconds, _count(usage, "completion_tokens"), _count(usage, "prompt_tokens"))


def _holds_token(event: Mapping[str, Any]) -> bool:
    """Whether an event is a piece of text, or a token whose text is empty; the last one may only say why the text ended."""
    return any(choice.get("text") or choice.get("finish_reason") is None for choice in event.get("choices", ()))


def _count(usage: Mapping[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if isinstance(value, int) else None
