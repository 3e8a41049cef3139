"""What services have alike on `/metrics`: version, readiness, how long certificates are good, dead letters."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prometheus_client import Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from schemas import streams
from services._runtime import tls
from services._runtime.settings_base import ConfigError
from services._runtime.settings_model import Settings
from services._runtime.version import version


def dead_letters(service: str, *more: str) -> Counter:
    """Counts what a service puts into the DLQ, by the stream that it came from.

    Each stream that it reads, and ``more``, begins at 0: Prometheus sees no increase in a series that was not there.
    """
    counter = Counter(f"cypria_{service}_dead_letters_total", "Messages put into the DLQ", ["stream"])
    for stream in (*(one.name for one in streams.STREAMS if service in one.readers), *more):
        counter.labels(stream)
    return counter


class Ready(Collector):
    """``missing`` gives what a process still lacks, nothing when it is ready."""

    def __init__(self, service: str, missing: Callable[[], object]) -> None:
        self._name = f"cypria_{service}_ready"
        self._missing = missing

    def collect(self) -> Iterator[Metric]:
        """One family."""
        yield GaugeMetricFamily(self._name, "1 where /ready answers 200, else 0", 0.0 if self._missing() else 1.0)


class Build(Collector):
    """Which version runs, to be joined with what else a service shows while a fleet is upgraded."""

    def __init__(self, service: str) -> None:
        self._name = f"cypria_{service}_build_info"
        self._version = version()

    def collect(self) -> Iterator[Metric]:
        """One family."""
        family = GaugeMetricFamily(self._name, "Always 1; the version of Cypria is a label", labels=["version"])
        family.add_metric([self._version], 1.0)
        yield family


class Certificates(Collector):
    """When the certificates end that a service shows to others; one that cannot be used any more has ended at 0."""

    def __init__(self, service: str, settings: Settings) -> None:
        self._name = f"cypria_{service}_certificate_expiry_timestamp_seconds"
        self._shown = list(_shown(service, settings))

    def collect(self) -> Iterator[Metric]:
        """One family, by the setting that names the certificate; files are read anew, since they are renewed."""
        family = GaugeMetricFamily(
            self._name, "When the certificate that the setting names ends, Unix time; 0: it cannot be used",
            labels=["setting"],
        )  # fmt: skip
        for section, cert_file, key_file in self._shown:
            try:
                ends = tls.certificate(section, cert_file, key_file, of_client=section != "http.tls").ends
            except ConfigError:
                ends = 0.0
            family.add_metric([section], ends)
        yield family


def _shown(service: str, settings: Settings) -> Iterable[tuple[str, Path, Path]]:
    """(section, certificate, key) of what this service shows."""
    if service == "router" and settings.http.tls:
        yield "http.tls", settings.http.tls.cert_file, settings.http.tls.key_file
    of_clickhouse = settings.clickhouse.tls if service == "metrics" else None
    for section, own in (("nats.tls", settings.nats.tls), ("clickhouse.tls", of_clickhouse)):
        if own is not None and own.cert_file and own.key_file:
            yield section, own.cert_file, own.key_file
