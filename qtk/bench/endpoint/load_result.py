"""What an endpoint did under load: a level for each number of clients or rate of requests."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from qtk.bench.latency_result import Quantiles
from qtk.charts.curves import Curve, CurveChart, CurvePoint
from qtk.charts.svg import Chart


class LoadLevel(BaseModel):
    """One shape at one level. Rates count whole requests, and the time from the first request to the end of the last.

    clients: that each send their next request when they have an answer; rate: of requests a second that arrive at random.
    One of the two is None. failed: requests that were refused or broke off, by the reason; the other figures leave them
    out. ttft_ms, inter_token_ms (the mean of each request after its first token) and request_ms: None where none succeeded.
    within: requests a second within the stated limits, the goodput; None where no limit was stated.
    """

    model_config = ConfigDict(frozen=True)
    endpoint: str
    shape: str
    clients: int | None = None
    rate: float | None = None
    requests: int
    failed: dict[str, int]
    seconds: float
    tokens_per_s: float
    requests_per_s: float
    ttft_ms: Quantiles | None
    inter_token_ms: Quantiles | None
    request_ms: Quantiles | None
    within: float | None

    @property
    def load(self) -> str:
        """The level in words."""
        if self.clients is not None:
            return f"{self.clients} client{'' if self.clients == 1 else 's'}"
        return f"{self.rate:g}/s"


def load_chart(levels: Sequence[LoadLevel]) -> Chart:
    """Throughput against the time of a request: a curve for each shape and way of sending, a point for each level."""
    curves: dict[str, list[CurvePoint]] = {}
    for level in levels:
        if level.request_ms is not None:
            way = "clients" if level.clients is not None else "arrivals"
            point = CurvePoint(level.tokens_per_s, level.request_ms.p50 / 1e3, level.load)
            curves.setdefault(f"{level.shape}, {way}", []).append(point)
    return CurveChart(
        "Throughput against latency",
        "tokens/s of all requests",
        "median time of a request, s",
        [Curve(name, tuple(points)) for name, points in curves.items()],
    ).draw()
