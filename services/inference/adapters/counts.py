"""What finished requests and loads amount to, on `/metrics`."""

import contextlib
from bisect import bisect_left
from typing import Any

from prometheus_client import Counter, Histogram

from schemas.v1.common import Outcome
from schemas.v1.inference import Final
from services._runtime.clock import monotonic

FIRST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BETWEEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
QUEUED_S = (0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60)

REQUESTS = Counter("cypria_inference_requests_total", "Requests finished, by outcome", ["model", "outcome"])
TOKENS = Counter("cypria_inference_tokens_total", "Tokens read and written", ["model", "kind"])
TTFT = Histogram("cypria_inference_first_token_seconds", "Arrival to first token", ["model"], buckets=FIRST_S)
TPOT = Histogram(
    "cypria_inference_output_token_seconds", "Time between tokens after the first", ["model"], buckets=BETWEEN_S,
)  # fmt: skip
QUEUED = Histogram(
    "cypria_inference_queue_seconds", "Wait for a slot, and in the engine where it tells", ["model"], buckets=QUEUED_S,
)  # fmt: skip
LOADS = Counter("cypria_inference_loads_total", "Tries to load a model that ended, by result", ["model", "result"])
LOAD_SECONDS = Histogram(
    "cypria_inference_load_seconds", "How long loading a model took, to the end of its warm-up", ["model"],
    buckets=(0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200),
)  # fmt: skip

_KINDS = ("prompt", "completion")
_RESULTS = ("ok", "failed", "timeout")
_SHOW_S = 1.0
"""How long a bucket shows one request before it shows another: naming one takes five times as long as counting it."""


class _Times:
    """Times of one model, and a recent request of each bucket by its id."""

    __slots__ = ("_edges", "_series", "_shown")

    def __init__(self, series: Histogram, edges: tuple[float, ...]) -> None:
        self._series = series
        self._edges = edges
        self._shown = [float("-inf")] * (len(edges) + 1)

    def add(self, seconds: float, request_id: str, now: float) -> None:
        """One more; ``request_id`` is "" where it must not be shown, ``now`` monotonic."""
        if request_id:
            cell = bisect_left(self._edges, seconds)
            if now - self._shown[cell] >= _SHOW_S:
                self._shown[cell] = now
                self._series.observe(seconds, {"request_id": request_id})
                return
        self._series.observe(seconds)


class Counts:
    """Counts requests; remembers the series of each model and outcome, since looking them up takes longest."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str], tuple[Any, ...]] = {}

    def add(self, model: str, final: Final, request_id: str = "") -> None:
        """A request has finished; ``request_id`` is shown to whoever reads the figures."""
        key = (model, final.outcome)
        series = self._series.get(key)
        if series is None:
            tokens = (TOKENS.labels(model, kind) for kind in _KINDS)
            series = self._series[key] = (
                REQUESTS.labels(*key), *tokens, _Times(TTFT.labels(model), FIRST_S),
                _Times(TPOT.labels(model), BETWEEN_S), _Times(QUEUED.labels(model), QUEUED_S),
            )  # fmt: skip
        requests, prompt, completion, first, between, queued = series
        requests.inc()
        prompt.inc(final.prompt_tokens)
        completion.inc(final.completion_tokens)
        now = monotonic() if request_id else 0.0
        for times, microseconds in ((first, final.ttft_us), (between, final.itl_us), (queued, final.queue_us)):
            if microseconds >= 0:
                times.add(microseconds / 1e6, request_id, now)

    def forget(self, model: str) -> None:
        """The model is here no more: neither are its series, so that names which come and go do not add up."""
        for key in [key for key in self._series if key[0] == model]:
            del self._series[key]
        labels = [(REQUESTS, outcome.value) for outcome in Outcome]
        labels += [(TOKENS, kind) for kind in _KINDS] + [(LOADS, result) for result in _RESULTS]
        for counter, label in labels:
            with contextlib.suppress(KeyError):
                counter.remove(model, label)
        for histogram in (TTFT, TPOT, QUEUED, LOAD_SECONDS):
            with contextlib.suppress(KeyError):
                histogram.remove(model)


def count_try(model: str, result: str, seconds: float) -> None:
    """A try to load a model ended after ``seconds``; ``result`` is ok, failed or timeout."""
    LOADS.labels(model, result).inc()
    if result == "ok":
        LOAD_SECONDS.labels(model).observe(seconds)
