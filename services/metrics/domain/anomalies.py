"""What is unusual about how keys are used, told from audit records alone. Pure.

An anomaly is there from the record that makes it one until nothing more of its kind has come for the quiet time.
"""

import json
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from schemas.v1.common import AlertLevel
from services.metrics.domain.chain import Link

PREFIX = "security."
"""Incidents of anomalies begin so, and nothing else's do."""
_REFUSED = frozenset({401, 403, 429})
_GUARDED = frozenset({"operator", "admin"})
"""Roles whose keys are watched for new places. The others are where that is set: they are used from wherever
applications run."""
_OTHERS = frozenset({"client", "viewer"})
KEY_GUESSING = "key-guessing"
"""Action of a record that stands for many refusals: a router has shut out an address for its wrong keys."""
FURTHER_REFUSALS = "further-refusals"
"""Action of a record that counts refusals that had none of their own, for want of a key, role or rate among others."""
SEVERAL = "several"
"""Source of such a record where there was more than one."""
COUNTED = "for_key_role_or_rate"
"""What such a record's ``after`` calls the number of those."""
_MANY = 1 << 31
_MAX_KEYS = 10_000


@dataclass(frozen=True, slots=True)
class Seen:
    """What of an audit record matters here; ``at_ms`` is the broker's time (Unix ms).

    ``times``: for so many refusals it stands.
    """

    stream: str
    sequence: int
    at_ms: int
    actor: str
    role: str
    action: str
    source: str
    status: int
    needs: str
    changes: bool
    times: int = 1


def seen(one: Link) -> Seen:
    """What matters of a link."""
    record = one.record
    return Seen(
        one.stream, one.sequence, one.stored_ms, record.actor, record.role, record.action, record.source, record.status,
        record.needs, record.changes,
        _counted(record.after) if record.action == FURTHER_REFUSALS else 1,
    )  # fmt: skip


def _counted(after: str) -> int:
    """As ClickHouse's JSONExtractUInt has it, so that the table tells the same as the bus."""
    try:
        count = json.loads(after)[COUNTED]
    except (ValueError, TypeError, KeyError):
        return 0
    return count if type(count) is int and count >= 0 else 0


@dataclass(frozen=True, slots=True)
class Limits:
    """When something is unusual: so many within ``window_ms``, 0 for never; over after ``quiet_ms`` without another."""

    window_ms: int
    quiet_ms: int
    refused_by_source: int
    refused_in_all: int
    refused_admin_changes: int
    new_places: bool
    new_places_of_clients: bool = False

    @property
    def horizon_ms(self) -> int:
        """Records older than this change nothing any more."""
        return self.window_ms + self.quiet_ms


@dataclass(frozen=True, slots=True)
class Anomaly:
    """Something unusual that is going on since ``since_ms`` (Unix ms)."""

    incident: str
    level: AlertLevel
    title: str
    message: str
    rule: str
    since_ms: int
    n: int | None = None
    threshold: int | None = None


@dataclass(slots=True)
class _Burst:
    """The last times of one kind, and from when to when they came in a burst; 0: they have not."""

    times: deque[int]
    since_ms: int = 0
    last_ms: int = 0


class _Rate:
    """So many of one key within the window. Keys that were not seen for longest are forgotten where there are many."""

    def __init__(self, limit: int, limits: Limits) -> None:
        self._limit = limit
        self._limits = limits
        self._bursts: OrderedDict[str, _Burst] = OrderedDict()

    def add(self, key: str, at_ms: int, times: int = 1) -> None:
        if self._limit == 0 or times == 0:
            return
        burst = self._bursts.pop(key, None) or _Burst(deque(maxlen=self._limit))
        self._bursts[key] = burst
        burst.times.extend([at_ms] * min(times, self._limit))
        if len(burst.times) == self._limit and at_ms - burst.times[0] <= self._limits.window_ms:
            if at_ms - burst.last_ms > self._limits.quiet_ms:
                burst.since_ms = at_ms
            burst.last_ms = max(burst.last_ms, at_ms)
        if len(self._bursts) > _MAX_KEYS:
            self._bursts.popitem(last=False)

    def going_on(self, now_ms: int) -> Iterable[tuple[str, int]]:
        """(key, since when) of what is not over."""
        for key, burst in self._bursts.items():
            if burst.last_ms and now_ms - burst.last_ms <= self._limits.quiet_ms:
                yield key, burst.since_ms


class Watch:
    """Takes records in their order and tells what is going on.

    ``places``: (actor, role, source, first use in Unix ms) of every key, oldest first. The place that a key was first
    used from is where it belongs; every later one is new once.
    """

    def __init__(self, limits: Limits, places: Iterable[tuple[str, str, str, int]] = ()) -> None:
        self._limits = limits
        self._upto: dict[str, int] = {}
        self._by_source = _Rate(limits.refused_by_source, limits)
        self._in_all = _Rate(limits.refused_in_all, limits)
        self._admins_things = _Rate(limits.refused_admin_changes, limits)
        self._places: dict[str, OrderedDict[str, int]] = {}
        for actor, role, source, first_ms in places:
            self._place(actor, role, source, first_ms)

    def add(self, one: Seen) -> None:
        """Take a record; one that was taken before changes nothing."""
        if one.sequence <= self._upto.get(one.stream, 0):
            return
        self._upto[one.stream] = one.sequence
        self._place(one.actor, one.role, one.source, one.at_ms)
        if one.status not in _REFUSED:
            return
        # Where keys are guessed, what came with requests to models is counted by the routers alone.
        if one.source != SEVERAL:
            self._by_source.add(one.source, one.at_ms, _MANY if one.action == KEY_GUESSING else one.times)
        self._in_all.add("", one.at_ms, one.times)
        if one.status == 403 and one.needs == "admin" and one.changes and one.role not in {"none", ""}:
            self._admins_things.add(one.actor, one.at_ms)

    def going_on(self, now_ms: int) -> list[Anomaly]:
        """What is unusual now, the same for the same records."""
        seconds = f"{self._limits.window_ms / 1000:g} s"
        limits = self._limits
        found = [
            Anomaly(
                f"{PREFIX}refused.source.{source}", AlertLevel.WARNING, "Many refused calls from one address",
                f"{limits.refused_by_source} or more calls within {seconds} were refused for their key, role or rate, "
                f"from {_from(source)}", "refused_by_source", since_ms, limits.refused_by_source,
                limits.refused_by_source,
            )
            for source, since_ms in self._by_source.going_on(now_ms)
        ]  # fmt: skip
        found += [
            Anomaly(
                f"{PREFIX}refused.all", AlertLevel.CRITICAL, "Many refused calls",
                f"{limits.refused_in_all} or more calls within {seconds} were refused for their key, role or rate, "
                "from all addresses together", "refused_in_all", since_ms, limits.refused_in_all, limits.refused_in_all,
            )
            for _, since_ms in self._in_all.going_on(now_ms)
        ]  # fmt: skip
        found += [
            Anomaly(
                f"{PREFIX}admin_changes.{actor}", AlertLevel.WARNING, "A key tries what is an admin's",
                f"key '{actor}' was refused {limits.refused_admin_changes} or more changes within {seconds} that need "
                "the role admin", "refused_admin_changes", since_ms, limits.refused_admin_changes,
                limits.refused_admin_changes,
            )
            for actor, since_ms in self._admins_things.going_on(now_ms)
        ]  # fmt: skip
        return found + self._new_places(now_ms)

    def _place(self, actor: str, role: str, source: str, at_ms: int) -> None:
        if role not in _GUARDED and not (self._limits.new_places_of_clients and role in _OTHERS):
            return
        known = self._places.setdefault(actor, OrderedDict())
        known.setdefault(source, at_ms)
        if len(known) > _MAX_KEYS:
            # Never the first: that is where the key belongs.
            known.pop(next(name for index, name in enumerate(known) if index == 1))

    def _new_places(self, now_ms: int) -> list[Anomaly]:
        if not self._limits.new_places:
            return []
        return [
            Anomaly(
                f"{PREFIX}new_place.{actor}.{source}", AlertLevel.WARNING, "A key is used from a new place",
                f"key '{actor}' was used from {_from(source)} for the first time: revoke it if nobody knows why",
                "new_places", first_ms,
            )
            for actor, places in self._places.items()
            for index, (source, first_ms) in enumerate(places.items())
            if index > 0 and now_ms - first_ms <= self._limits.quiet_ms
        ]  # fmt: skip


def _from(source: str) -> str:
    return "the bus" if source == "bus" else f"the address that the audit shows as {source}"
