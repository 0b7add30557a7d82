"""The HTTP interface of a served engine: OpenAI's completions, chat completions and models, health, and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from qtk.serving.bodies import END_OF_STREAM, ChatForm, CompletionForm, server_sent
from qtk.serving.generation import CLIENT_LEFT, PreparedPrompt, PreparedRequest, RunningRequest
from qtk.serving.metrics import ServingMetrics
from qtk.serving.refusals import RefusedRequest, error_object
from qtk.serving.requests import ChatRequest, CompletionRequest, GenerationRequest, parse_request
from qtk.serving.scheduler import Scheduler
from qtk.serving.served_engine import ServedEngine

# A client that sends or reads nothing for so long is given up.
_PATIENCE_SECONDS = 60.0
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Endpoint = Callable[[Request], Awaitable[Response]]


class ServingApp:
    """The endpoints of one engine. `asgi` is the application, whose lifespan starts and ends the engine's thread."""

    def __init__(self, served: ServedEngine, on_failure: Callable[[], None]) -> None:
        """on_failure: called when the engine has failed and can serve nothing more. InputError for more rows than it has."""
        self.served = served
        self._runner = served.runner()
        self._on_failure = on_failure
        self._started = int(time.time())
        self._scheduler: Scheduler | None = None
        self.metrics = ServingMetrics(lambda: self.scheduler.running, lambda: self.scheduler.waiting)
        self.asgi = Starlette(
            routes=[
                Route("/v1/completions", self._counted("completions", self._completions), methods=["POST"]),
                Route("/v1/chat/completions", self._counted("chat", self._chat), methods=["POST"]),
                Route("/v1/models", self._guarded(self._models)),
                Route("/v1/models/{model:path}", self._guarded(self._model)),
                Route("/metrics", self._guarded(self._metrics_text)),
                Route("/health", self._health),
            ],
            exception_handlers={RefusedRequest: _refused, HTTPException: _http_error, Exception: _bug},
            lifespan=self._lifespan,
        )

    def close(self) -> None:
        """Gives up whatever the engine still does. After it the engine may be closed."""
        if self._scheduler is not None:
            self._scheduler.close()

    @property
    def scheduler(self) -> Scheduler:
        assert self._scheduler is not None, "the application has not started"
        return self._scheduler

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()

        def post(task: Callable[[], None]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens any more
                loop.call_soon_threadsafe(task)

        self._scheduler = Scheduler(self._runner, self.served.options.max_waiting, post, self._on_failure)
        try:
            yield
        finally:
            self._scheduler.drain()
            await asyncio.to_thread(self._scheduler.join)

    def _guarded(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint, for those who send the key."""

        async def guarded(request: Request) -> Response:
            self._require_key(request)
            return await endpoint(request)

        return guarded

    def _counted(self, name: str, endpoint: Endpoint) -> Endpoint:
        """The guarded endpoint, whose answers are counted by their status."""

        async def counted(request: Request) -> Response:
            status = 500
            try:
                self._require_key(request)
                response = await endpoint(request)
                status = response.status_code
                return response
            except RefusedRequest as refused:
                status = refused.status
                raise
            finally:
                self.metrics.requests.labels(name, str(status)).inc()

        return counted

    def _require_key(self, request: Request) -> None:
        expected = self.served.api_key
        if not expected:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode(), expected.encode())
        if scheme.lower() != "bearer" or not right:
            raise RefusedRequest(
                401,
                "The API key is missing or wrong. Send it as 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _completions(self, request: Request) -> Response:
        body = parse_request(CompletionRequest, await self._body(request))
        form = CompletionForm(self.served.name, self.served.tokenizer, logprobs=body.logprobs is not None)
        self._require_supported(body, logprobs=form.logprobs)
        prompts = await asyncio.to_thread(self._completion_prompts, body)
        return await self._answer(request, PreparedRequest(body, prompts, form, body.logprobs, _client(request, body)))

    def _completion_prompts(self, body: CompletionRequest) -> list[PreparedPrompt]:
        made = []
        for prompt in body.prompts:
            tokens = self.served.text_prompt(prompt) if isinstance(prompt, str) else prompt
            new_tokens = self.served.new_tokens(tokens, body.max_tokens, "prompt")
            text = prompt if isinstance(prompt, str) else self.served.tokenizer.decode(tokens, skip_special=False)
            made.append(PreparedPrompt(tuple(tokens), new_tokens, text if body.echo else None))
        return made

    async def _chat(self, request: Request) -> Response:
        body = parse_request(ChatRequest, await self._body(request))
        form = ChatForm(self.served.name, self.served.tokenizer, logprobs=bool(body.logprobs))
        self._require_supported(body, logprobs=form.logprobs)
        tokens = await asyncio.to_thread(self.served.chat_prompt, body)
        new_tokens = self.served.new_tokens(tokens, body.most_tokens, "messages")
        top = (body.top_logprobs or 0) if form.logprobs else None
        prompts = [PreparedPrompt(tuple(tokens), new_tokens)]
        return await self._answer(request, PreparedRequest(body, prompts, form, top, _client(request, body)))

    def _require_supported(self, body: GenerationRequest, *, logprobs: bool) -> None:
        if body.model != self.served.name:
            raise RefusedRequest(
                404,
                f"The model {body.model!r} is not served here; {self.served.name!r} is.",
                param="model",
                code="model_not_found",
            )
        if logprobs and not self._runner.gives_logprobs:
            raise RefusedRequest(400, "The runtime of this engine gives no log probabilities.", param="logprobs")

    async def _answer(self, request: Request, prepared: PreparedRequest) -> Response:
        begin = time.perf_counter()
        running = RunningRequest(prepared, self.metrics)
        if not prepared.request.stream:
            async with running:
                running.submit(self.scheduler, request.receive)
                choices = await running.whole()
            self.metrics.whole.observe(time.perf_counter() - begin)
            return JSONResponse(prepared.form.whole(choices, running.usage))
        running.submit(self.scheduler, request.receive)
        events = self._events(running, prepared, begin)
        try:
            first = await anext(events)  # a request that fails before its first piece gets a status of its own
        except BaseException:
            await events.aclose()
            raise
        return _EventStream(first, events)

    async def _events(self, running: RunningRequest, prepared: PreparedRequest, begin: float) -> AsyncGenerator[bytes]:
        """The server-sent events of a request that streams."""
        form, started = prepared.form, False
        async with running:
            try:
                async for pieces in running.pieces():
                    openings = [] if started else [form.opening(index) for index in range(running.choices)]
                    bodies = [body for body in openings if body] + [form.piece(piece) for piece in pieces]
                    yield b"".join(map(server_sent, bodies))
                    started = True
                if prepared.request.usage_in_stream:
                    yield server_sent(form.closing(running.usage))
                yield END_OF_STREAM
                self.metrics.whole.observe(time.perf_counter() - begin)
            except RefusedRequest as refused:
                if not started:
                    raise
                if refused.status != CLIENT_LEFT:
                    yield server_sent(refused.body())

    async def _body(self, request: Request) -> bytes:
        """The body, as far as it is within its bound."""
        most = self.served.options.max_body
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                async for part in request.stream():
                    parts.append(part)
                    if sum(map(len, parts)) > most:
                        raise RefusedRequest(
                            413,
                            f"The body is larger than {most} bytes (--max-body).",
                            headers={"Connection": "close"},
                        )
        except TimeoutError:
            raise RefusedRequest(408, "The body did not come in time.", headers={"Connection": "close"}) from None
        return b"".join(parts)

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._description()]})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if name != self.served.name:
            raise RefusedRequest(404, f"The model {name!r} is not served here.", code="model_not_found")
        return JSONResponse(self._description())

    def _description(self) -> dict[str, Any]:
        return {
            "id": self.served.name,
            "object": "model",
            "created": self._started,
            "owned_by": "qtk",
            "max_model_len": self.served.most_positions,
        }

    async def _metrics_text(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type=_METRICS_TYPE)

    async def _health(self, request: Request) -> Response:
        failed = self.scheduler.failure is not None
        return JSONResponse({"status": "failed" if failed else "ok"}, status_code=503 if failed else 200)


class _EventStream(Response):
    """Server-sent events. A client that stops reading is given up; its leaving is heard by the request itself."""

    media_type = "text/event-stream"

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._first, self._rest = first, rest

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def write(message: dict[str, Any]) -> None:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await send(message)

        async with contextlib.aclosing(self._rest):
            await write({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await write({"type": "http.response.body", "body": self._first, "more_body": True})
            async for event in self._rest:
                await write({"type": "http.response.body", "body": event, "more_body": True})
            await write({"type": "http.response.body", "body": b""})


def _client(request: Request, body: GenerationRequest) -> str:
    """Whose turn a request takes in the queue."""
    return body.user or (request.client.host if request.client else "")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedRequest)
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    message = {404: f"{where} is not served here.", 405: f"{where}: the method is not allowed."}
    text = message.get(error.status_code, error.detail)
    return JSONResponse(error_object(error.status_code, text), status_code=error.status_code, headers=error.headers)


async def _bug(request: Request, error: Exception) -> Response:
    traceback.print_exception(error)
    message = f"A bug: {type(error).__name__}: {error}."
    return JSONResponse(error_object(500, message), status_code=500)
