"""What is counted, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class ServingMetrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "qtk_requests", "Requests that were answered.", ["endpoint", "status"], registry=registry
        )
        self.cancelled = Counter("qtk_requests_cancelled", "Requests whose client left.", registry=registry)
        self.prompt_tokens = Counter("qtk_prompt_tokens", "Tokens of prompts that were taken.", registry=registry)
        self.new_tokens = Counter("qtk_generated_tokens", "Tokens that were generated.", registry=registry)
        self.first_token = Histogram(
            "qtk_time_to_first_token_seconds",
            "From the request to its first token, waiting included.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.between_tokens = Histogram(
            "qtk_time_between_tokens_seconds",
            "From one token of a text to its next.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.whole = Histogram(
            "qtk_request_seconds", "From the request to the end of its answer.", buckets=_SECONDS, registry=registry
        )
        Gauge("qtk_rows_running", "Texts that are being generated.", registry=registry).set_function(running)
        Gauge("qtk_rows_waiting", "Texts that wait for a row.", registry=registry).set_function(waiting)

    def text(self) -> bytes:
        """Everything, for a scrape."""
        return generate_latest(self._registry)
