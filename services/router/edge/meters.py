"""Counters of the request path for `/metrics`: plain integers on the path, Prometheus families when asked."""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_CELLS = len(BUCKETS) + 1


@dataclass(frozen=True, slots=True)
class Figure:
    """A value that is read when somebody asks: a number, or one for each value of ``label``; ``counts``: a counter."""

    name: str
    text: str
    read: Callable[[], float | Mapping[str, float]]
    label: str = ""
    counts: bool = False

    def family(self) -> Metric:
        """As Prometheus has it, without a value."""
        kind = CounterMetricFamily if self.counts else GaugeMetricFamily
        return kind(self.name, self.text, labels=[self.label] if self.label else [])


class _Seconds:
    """Times of one route and variant: how many by bucket, the sum, and the last request of each bucket by its id."""

    __slots__ = ("counts", "last", "total")

    def __init__(self) -> None:
        self.counts = [0] * _CELLS
        self.last: list[tuple[str, float, float] | None] = [None] * _CELLS
        self.total = 0.0

    def buckets(self) -> Iterator[tuple[str, float] | tuple[str, float, Exemplar]]:
        """(upper edge, requests up to it, one of its own where one is known)."""
        below = 0
        for edge, count, last in zip((*BUCKETS, float("inf")), self.counts, self.last, strict=True):
            below += count
            name = "+Inf" if edge == float("inf") else repr(edge)
            if last is None:
                yield name, below
            else:
                yield name, below, Exemplar({"request_id": last[0]}, last[1], last[2])


class Meters(Collector):
    """What the path counts. Labels are bounded: four routes, a variant or none, the statuses that were sent."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.fallbacks = 0
        self.refused: dict[int, int] = {}
        self._requests: dict[tuple[str, str, int], int] = {}
        self._seconds: dict[tuple[str, str], _Seconds] = {}
        self._figures: list[Figure] = []

    def done(self, route: str, variant: str, status: int, seconds: float, request_id: str) -> None:
        """A request was answered, or its client left (499). ``request_id`` is shown to whoever reads the figures: none
        that a caller chose, which may say who it is, but "".
        """
        key = (route, variant, status)
        self._requests[key] = self._requests.get(key, 0) + 1
        found = self._seconds.get((route, variant))
        if found is None:
            found = self._seconds[route, variant] = _Seconds()
        cell = bisect_left(BUCKETS, seconds)
        found.counts[cell] += 1
        found.total += seconds
        if request_id:
            found.last[cell] = (request_id, seconds, time.time())

    def refuse(self, status: int) -> None:
        """A request was refused before it reached a model."""
        self.refused[status] = self.refused.get(status, 0) + 1

    def figure(self, figure: Figure) -> None:
        """Show this as well."""
        self._figures.append(figure)

    def collect(self) -> Iterator[Metric]:
        """Prometheus' families of all of it."""
        requests = CounterMetricFamily(
            "cypria_router_requests", "Inference requests answered", labels=["route", "variant", "status"]
        )
        for (route, variant, status), count in list(self._requests.items()):
            requests.add_metric([route, variant, str(status)], count)
        yield requests
        refused = CounterMetricFamily(
            "cypria_router_refused", "Requests refused before they reached a model", labels=["status"]
        )
        for status, count in list(self.refused.items()):
            refused.add_metric([str(status)], count)
        yield refused
        yield CounterMetricFamily(
            "cypria_router_fallbacks", "Canary requests that the stable model served", self.fallbacks
        )
        seconds = HistogramMetricFamily(
            "cypria_router_request_seconds", "Time from a read request to its last byte", labels=["route", "variant"]
        )
        for (route, variant), found in list(self._seconds.items()):
            seconds.add_metric([route, variant], list(found.buckets()), found.total)
        yield seconds
        yield GaugeMetricFamily("cypria_router_in_flight", "Inference requests in flight", self.in_flight)
        for figure in self._figures:
            value = figure.read()
            family = figure.family()
            for label, each in value.items() if isinstance(value, Mapping) else ((None, value),):
                family.add_metric([] if label is None else [label], each)  # type: ignore[attr-defined]
            yield family
