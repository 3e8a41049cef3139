"""What finished requests and loads amount to, on `/metrics`."""

import contextlib
from typing import Any

from prometheus_client import Counter, Histogram

from schemas.v1.common import Outcome
from schemas.v1.inference import Final

REQUESTS = Counter("cypria_inference_requests_total", "Requests finished, by outcome", ["model", "outcome"])
TOKENS = Counter("cypria_inference_tokens_total", "Tokens read and written", ["model", "kind"])
TTFT = Histogram(
    "cypria_inference_first_token_seconds", "Arrival to first token", ["model"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)  # fmt: skip
TPOT = Histogram(
    "cypria_inference_output_token_seconds", "Time between tokens after the first", ["model"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)  # fmt: skip
QUEUED = Histogram(
    "cypria_inference_queue_seconds", "Wait for a slot, and in the engine where it tells", ["model"],
    buckets=(0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60),
)  # fmt: skip
LOADS = Counter("cypria_inference_loads_total", "Tries to load a model that ended, by result", ["model", "result"])
LOAD_SECONDS = Histogram(
    "cypria_inference_load_seconds", "How long loading a model took, to the end of its warm-up", ["model"],
    buckets=(0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200),
)  # fmt: skip

_KINDS = ("prompt", "completion")
_RESULTS = ("ok", "failed", "timeout")


class Counts:
    """Counts requests; remembers the series of each model and outcome, since looking them up takes longest."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str], tuple[Any, ...]] = {}

    def add(self, model: str, final: Final) -> None:
        """A request has finished."""
        key = (model, final.outcome)
        series = self._series.get(key)
        if series is None:
            tokens = (TOKENS.labels(model, kind) for kind in _KINDS)
            series = self._series[key] = (
                REQUESTS.labels(*key), *tokens, TTFT.labels(model), TPOT.labels(model), QUEUED.labels(model),
            )  # fmt: skip
        requests, prompt, completion, first, between, queued = series
        requests.inc()
        prompt.inc(final.prompt_tokens)
        completion.inc(final.completion_tokens)
        for histogram, microseconds in ((first, final.ttft_us), (between, final.itl_us), (queued, final.queue_us)):
            if microseconds >= 0:
                histogram.observe(microseconds / 1e6)

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
