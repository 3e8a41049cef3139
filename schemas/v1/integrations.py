"""What integrations are told, and the interface of those that are Python: the public API of subscribers.

A subscriber is what an entry point of the group `GROUP` makes: a callable that takes the configured options (a dict) and
gives an object with any of the methods of `Subscriber`. docs/integrations.md has a complete one.
"""

from collections.abc import Awaitable
from typing import Protocol

from pydantic import Field

from schemas.v1.common import Decision, Message, TestStatus, UnixMs
from schemas.v1.experiment import VariantSummary

GROUP = "cypria.integrations"
"""The group of entry points that subscribers are found in."""


class Occasion(Message):
    """What all of them share. ``event_id`` is its identity for ever: what comes twice has the same one."""

    event_id: str
    test_id: str
    model_a: str = ""
    model_b: str = ""
    at_ms: UnixMs


class Started(Occasion):
    """A test has begun: ``model_b`` gets this share of the traffic of ``model_a``."""

    traffic_split_percent: float = 0.0
    actor: str = ""
    duration_minutes: float | None = None
    primary_metric: str = ""
    tags: dict[str, str] = Field(default_factory=dict)


class VariantFigures(Message):
    """One variant in one window: finished requests without the callers' own errors, rates in percent, cost in dollars.

    What was not measured is null; times are of whole replies, a quantile is within about 1 %. Of a group of fewer than
    `privacy.min_group_size` requests there are counts alone, and ``withheld`` is true.
    """

    requests: int = 0
    errors: int = 0
    error_rate: float | None = None
    client_errors: int = 0
    avg_latency_ms: float | None = None
    latency_p95_ms: float | None = None
    avg_ttft_ms: float | None = None
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    cost: float | None = 0.0
    withheld: bool = False


class MetricWindow(Occasion):
    """Figures of a test from ``begins_ms`` (inclusive) to ``ends_ms`` (not), by variant (``a``, ``b``)."""

    begins_ms: UnixMs
    ends_ms: UnixMs
    variants: dict[str, VariantFigures] = Field(default_factory=dict)


class RolledBack(Occasion):
    """``model_b`` was taken out, ``model_a`` serves everything; ``automatic`` when no person ordered it."""

    automatic: bool = True
    rule: str = ""
    reason: str = ""
    actor: str = ""
    value: float | None = None
    bound: float | None = None
    threshold: float | None = None
    n_a: int = 0
    n_b: int = 0


class Decided(Occasion):
    """A test has ended with a decision, a rollback included.

    ``performance_gain_percent`` is how much better ``model_b`` is in ``metric`` (lower latency is better), null where the
    decision rests on something else; ``variants`` are the totals of the whole test, empty for a rollback: it is told before
    its last requests are counted.
    """

    decision: Decision
    status: TestStatus
    reason: str = ""
    rule: str = ""
    metric: str = ""
    performance_gain_percent: float | None = None
    n_a: int = 0
    n_b: int = 0
    variants: dict[str, VariantSummary] = Field(default_factory=dict)
    tags: dict[str, str] = Field(default_factory=dict)


class GiveUp(Exception):  # noqa: N818 - said, not reported: what a subscriber raises
    """Raised by a subscriber for what will not work however often it is tried: it becomes a dead letter at once."""


class Subscriber(Protocol):
    """What a subscriber may have; each method may be sync or async, and may be left out.

    One call at a time, in a process of its own: async methods on one event loop that goes on between the calls, the others in
    one thread. A call that returns has succeeded; one that raises, takes too long or ends the process is made again later,
    with the same event. What is inherited from here does nothing, and is not called.
    """

    def on_started(self, event: Started) -> Awaitable[None] | None:  # noqa: ARG002
        """A test has begun."""
        return None

    def on_metric_window(self, event: MetricWindow) -> Awaitable[None] | None:  # noqa: ARG002
        """Figures of a test's last window; a window in which nothing finished is not told."""
        return None

    def on_rolled_back(self, event: RolledBack) -> Awaitable[None] | None:  # noqa: ARG002
        """A canary was taken out; `on_decided` follows."""
        return None

    def on_decided(self, event: Decided) -> Awaitable[None] | None:  # noqa: ARG002
        """A test has ended."""
        return None


CALLS: dict[str, type[Occasion]] = {
    "started": Started,
    "metric_window": MetricWindow,
    "rolled_back": RolledBack,
    "decided": Decided,
}
"""Kinds of occasions; the method for each is ``on_<kind>``."""
