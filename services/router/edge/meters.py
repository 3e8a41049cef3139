"""Counters of the request path for `/metrics`: plain integers on the path, Prometheus families when asked."""

from bisect import bisect_left
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Meters(Collector):
    """What the path counts. Labels are bounded: four routes, a variant or none, the statuses that were sent."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.fallbacks = 0
        self.refused: dict[int, int] = {}
        self._requests: dict[tuple[str, str, int], int] = {}
        self._seconds: dict[tuple[str, str], list[float]] = {}
        self._gauges: list[tuple[str, str, Callable[[], float]]] = []

    def done(self, route: str, variant: str, status: int, seconds: float) -> None:
        """A request was answered, or its client left (499)."""
        key = (route, variant, status)
        self._requests[key] = self._requests.get(key, 0) + 1
        cells = self._seconds.get((route, variant))
        if cells is None:
            cells = self._seconds[route, variant] = [0.0] * (len(BUCKETS) + 2)
        cells[bisect_left(BUCKETS, seconds)] += 1.0
        cells[-1] += seconds

    def refuse(self, status: int) -> None:
        """A request was refused before it reached a model."""
        self.refused[status] = self.refused.get(status, 0) + 1

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A value that is read when somebody asks."""
        self._gauges.append((name, text, read))

    def collect(self) -> Iterator[Metric]:
        """Prometheus' families of all of it."""
        requests = CounterMetricFamily(
            "cypria_router_requests", "Inference requests answered.", labels=["route", "variant", "status"]
        )
        for (route, variant, status), count in list(self._requests.items()):
            requests.add_metric([route, variant, str(status)], count)
        yield requests
        refused = CounterMetricFamily(
            "cypria_router_refused", "Requests refused before they reached a model.", labels=["status"]
        )
        for status, count in list(self.refused.items()):
            refused.add_metric([str(status)], count)
        yield refused
        yield CounterMetricFamily(
            "cypria_router_fallbacks", "Canary requests that the stable model served.", self.fallbacks
        )
        seconds = HistogramMetricFamily(
            "cypria_router_request_seconds", "Time from a read request to its last byte.", labels=["route", "variant"]
        )
        for (route, variant), cells in list(self._seconds.items()):
            total, buckets = 0.0, []
            for edge, below in zip((*BUCKETS, float("inf")), cells, strict=False):
                total += below
                buckets.append(("+Inf" if edge == float("inf") else repr(edge), total))
            seconds.add_metric([route, variant], buckets, cells[-1])
        yield seconds
        yield GaugeMetricFamily("cypria_router_in_flight", "Inference requests in flight.", self.in_flight)
        for name, text, read in self._gauges:
            yield GaugeMetricFamily(name, text, read())
