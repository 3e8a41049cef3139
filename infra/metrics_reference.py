"""Writes docs/metrics.md from the code that counts: `python -m infra.metrics_reference`, with `--check` to compare."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from prometheus_client.metrics import MetricWrapperBase

from services._runtime.generated import bring_up_to_date
from services._runtime.settings_model import Settings
from services._runtime.vitals import Build, Certificates, Ready

TARGET = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"

SERVICES = ("router", "inference", "metrics", "monitor", "alerts")
_MODULES = (
    "services.router.control.recorder", "services.router.adapters.nats_audit", "services.router.adapters.dead_letters",
    "services.inference.adapters.counts", "services.metrics.adapters.meters", "services.monitor.telemetry",
    "services.alerts.adapters.meters",
)  # fmt: skip
"""Where metrics are made when the module is imported."""

HEAD = """# Metrics

What each service shows at `/metrics` ([operations](operations.md#metrics)), beside `python_*` and `process_*` of the
Prometheus client. Labels are bounded: no metric has one for a test, a unit, a caller or a request, and what models and
destinations have goes with them. `router` counts requests and `inference` what workers make of them, so that a request
that no worker took is counted, too. This page is made from the code: `python -m infra.metrics_reference`.
"""


class Described(NamedTuple):
    """A family as the reference has it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


class _Anything:
    """Stands for the parts of a running service, of which a description reads nothing."""

    def __getattr__(self, _name: str) -> "_Anything":
        return self

    def __call__(self) -> tuple[()]:
        return ()


def described() -> list[Described]:
    """Every family of every service, by name."""
    return sorted({*_made_on_import(), *_made_by_collectors()})


def _made_on_import() -> Iterator[Described]:
    for module in _MODULES:
        for value in vars(importlib.import_module(module)).values():
            if isinstance(value, MetricWrapperBase):
                yield _described(next(iter(value.describe())), value)


def _made_by_collectors() -> Iterator[Described]:
    from services.inference.adapters.gauges import ModelGauges
    from services.router.edge.meters import Meters
    from services.router.edge.path import figures

    stand_in = cast("Any", _Anything())
    families: list[Any] = [*Meters().collect(), *ModelGauges(stand_in, stand_in).collect()]
    families += [figure.family() for figure in figures(stand_in, stand_in)]
    for service in SERVICES:
        certificates = Certificates(service, Settings.model_construct())
        families += [*Build(service).collect(), *Ready(service, tuple).collect(), *certificates.collect()]
    for family in families:
        yield _described(family, family)


def _described(family: Any, labelled: Any) -> Described:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    # the client library tells a family's labels nowhere else before it has a sample
    return Described(name, family.type, tuple(labelled._labelnames), family.documentation)  # noqa: SLF001


def render() -> str:
    """The page as Markdown."""
    lines = [HEAD]
    families = described()
    for service in SERVICES:
        lines += [f"## {service}", "| metric | type | labels | what |", "| --- | --- | --- | --- |"]
        for one in families:
            if one.name.startswith(f"cypria_{service}_"):
                labels = ", ".join(f"`{label}`" for label in one.labels)
                lines.append(f"| `{one.name}` | {one.kind} | {labels} | {one.text} |")
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Write the page, or say whether it is as the code has it; the exit status."""
    return bring_up_to_date(arguments, "python -m infra.metrics_reference", {TARGET: render()})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
