"""An endpoint under load: so many clients at once, or requests that arrive at random at a rate.

Clients send their next request when they have their answer, so they never ask for more than the endpoint can do; arrivals do
not wait for it. A request's time counts from when it was to be sent, so that a queue on this side hides nothing.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from qtk.bench.endpoint.client import EndpointClient, EndpointDown, RefusedByEndpoint, StreamedAnswer, streamed_answer
from qtk.bench.endpoint.load_result import LoadLevel
from qtk.bench.endpoint.options import LoadOptions
from qtk.bench.endpoint.timed_endpoint import TimedEndpoint, new_tokens, times_between, token_times
from qtk.bench.latency_result import Quantiles
from qtk.bench.options import LatencyOptions, parse_shapes
from qtk.bench.timed import Shape, shape_name
from qtk.progress import Progress

_MOST_IN_FLIGHT = 1024
# A refusal comes at once: a client that asked again at once would measure refusals only.
_AFTER_A_REFUSAL = 0.1


@dataclass(frozen=True)
class _Sent:
    """A request that was sent: its answer, or why there is none. ended: time.perf_counter()."""

    answer: StreamedAnswer | None
    failure: str
    ended: float


def measure_load(endpoint: TimedEndpoint, options: LatencyOptions, load: LoadOptions) -> list[LoadLevel]:
    """Every shape at every level that is asked for, with progress on stderr.

    A request that fails is counted, not raised; an endpoint that fails at all requests of a level is not asked further, and
    the levels so far are the result, the failed one included.
    """
    levels: list[LoadLevel] = []
    plans: list[Callable[[Shape], LoadLevel]] = [
        *(_clients_plan(endpoint, options, load, count) for count in load.clients()),
        *(_rate_plan(endpoint, options, load, rate) for rate in load.rates()),
    ]
    work = [(shape, plan) for shape in parse_shapes(options.shapes) for plan in plans]
    with Progress(f"load on {endpoint.model.label}", len(work), "levels") as progress:
        for shape, plan in work:
            level = plan(shape)
            levels.append(level)
            progress.advance(1, f"{level.shape}, {level.load}: {level.tokens_per_s:.1f} tokens/s")
            if level.failed and not level.requests:
                break
    return levels


def _clients_plan(
    endpoint: TimedEndpoint, options: LatencyOptions, load: LoadOptions, count: int
) -> Callable[[Shape], LoadLevel]:
    def measure(shape: Shape) -> LoadLevel:
        sent, begin = _by_clients(endpoint, options, shape, count)
        return _level(endpoint, load, shape, sent, begin).model_copy(update={"clients": count})

    return measure


def _rate_plan(
    endpoint: TimedEndpoint, options: LatencyOptions, load: LoadOptions, rate: float
) -> Callable[[Shape], LoadLevel]:
    def measure(shape: Shape) -> LoadLevel:
        sent, begin = _by_rate(endpoint, options, shape, rate)
        return _level(endpoint, load, shape, sent, begin).model_copy(update={"rate": rate})

    return measure


def _by_clients(
    endpoint: TimedEndpoint, options: LatencyOptions, shape: Shape, count: int
) -> tuple[list[_Sent], float]:
    """Each client's warm-ups, then requests until the time is over, at least `runs` of all clients together."""
    least = -(-options.runs // count)

    def warm(client: EndpointClient) -> None:
        for _ in range(options.warmups):
            _send(endpoint, client, shape)

    def ask(client: EndpointClient) -> list[_Sent]:
        sent: list[_Sent] = []
        while time.perf_counter() - begin < options.seconds or len(sent) < least:
            if sent and sent[-1].failure:
                time.sleep(_AFTER_A_REFUSAL)
            sent.append(_send(endpoint, client, shape))
        return sent

    with ThreadPoolExecutor(count) as threads, contextlib.ExitStack() as connections:
        clients = [connections.enter_context(EndpointClient(endpoint.model.endpoint)) for _ in range(count)]
        list(threads.map(warm, clients))
        begin = time.perf_counter()
        found = list(threads.map(ask, clients))
    return [one for sent in found for one in sent], begin


def _by_rate(endpoint: TimedEndpoint, options: LatencyOptions, shape: Shape, rate: float) -> tuple[list[_Sent], float]:
    """Requests at random times for as long as the time is, and at least `runs` of them."""
    random = np.random.default_rng(options.seed)
    count = max(options.runs, round(rate * options.seconds))
    arrivals = np.cumsum(random.exponential(1 / rate, count))
    idle: queue.SimpleQueue[EndpointClient] = queue.SimpleQueue()

    def request(due: float) -> _Sent:
        try:
            client = idle.get_nowait()
        except queue.Empty:
            client = EndpointClient(endpoint.model.endpoint)
        try:
            return _send(endpoint, client, shape, due)
        finally:
            idle.put(client)

    for _ in range(options.warmups):
        request(time.perf_counter())
    with ThreadPoolExecutor(min(count, _MOST_IN_FLIGHT)) as threads:
        begin, running = time.perf_counter(), list[Future[_Sent]]()
        for arrival in arrivals.tolist():
            time.sleep(max(0.0, begin + arrival - time.perf_counter()))
            running.append(threads.submit(request, begin + arrival))
        sent = [done.result() for done in running]
    while not idle.empty():
        idle.get().close()
    return sent, begin


def _send(endpoint: TimedEndpoint, client: EndpointClient, shape: Shape, due: float | None = None) -> _Sent:
    body = endpoint.model.body(endpoint.model.prompt(shape[0]), shape[1])
    try:
        answer = streamed_answer(client, body, due)
    except RefusedByEndpoint as error:
        return _Sent(None, f"status {error.status}", time.perf_counter())
    except EndpointDown as error:
        return _Sent(None, str(error), time.perf_counter())
    endpoint.observe(answer, shape)
    return _Sent(answer, "", time.perf_counter())


def _level(endpoint: TimedEndpoint, load: LoadOptions, shape: Shape, sent: Sequence[_Sent], begin: float) -> LoadLevel:
    answers = [one.answer for one in sent if one.answer is not None]
    seconds = max((one.ended for one in sent), default=begin) - begin
    first = [token_times(answer)[0] for answer in answers]
    between = [float(np.mean(times)) if times else None for times in map(times_between, answers)]
    within = sum(_is_within(*times, load) for times in zip(first, between, strict=True))
    limited = load.max_ttft is not None or load.max_inter_token is not None
    return LoadLevel(
        endpoint=endpoint.model.label,
        shape=shape_name(shape),
        requests=len(answers),
        failed=dict(Counter(one.failure for one in sent if one.answer is None)),
        seconds=seconds,
        tokens_per_s=sum(map(new_tokens, answers)) / seconds,
        requests_per_s=len(answers) / seconds,
        ttft_ms=Quantiles.of(first),
        inter_token_ms=Quantiles.of([seconds for seconds in between if seconds is not None]),
        request_ms=Quantiles.of([answer.seconds for answer in answers]),
        within=within / seconds if limited else None,
    )


def _is_within(first: float, between: float | None, load: LoadOptions) -> bool:
    """Whether a request kept the stated limits. In seconds; between: the mean time between tokens, None of a single one."""
    if load.max_ttft is not None and first * 1e3 > load.max_ttft:
        return False
    return load.max_inter_token is None or between is None or between * 1e3 <= load.max_inter_token
