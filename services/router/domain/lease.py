"""The canary's lease: while nobody watches a test, its canary loses its share. Times are monotonic seconds."""

from dataclasses import dataclass, field

LEASE_S = 15.0
CHECKS_TO_ROLLBACK = 5
MAX_HOLDERS = 8


@dataclass(slots=True)
class Lease:
    """One test's lease as one router sees it. ``since`` is when the router first had to do with the test."""

    since: float
    counters: dict[str, int] = field(default_factory=dict)

    def heard(self, holder: str, counter: int, now: float) -> None:
        """A message on `cypria.lease.<test_id>`; only a counter that grew (or a new holder's first) renews."""
        last = self.counters.get(holder)
        if last is not None and counter <= last:
            return
        if last is None and len(self.counters) >= MAX_HOLDERS:
            self.counters.pop(next(iter(self.counters)))
        self.counters[holder] = counter
        self.since = max(self.since, now)

    def lapsed(self, now: float) -> bool:
        """Whether the counter has not grown for 15 s."""
        return now - self.since >= LEASE_S

    def lapsed_for(self, now: float) -> float:
        """Seconds since the lapse; 0 while the lease holds."""
        return max(0.0, now - self.since - LEASE_S)


def unwatched(lease: Lease, now: float, connected_for_s: float) -> bool | None:
    """Whether nobody watches the test; None while the router cannot tell, having been cut off itself."""
    return None if connected_for_s < LEASE_S else lease.lapsed(now)


def rollback_due(
    lease: Lease, now: float, *, check_interval_s: float, connected_for_s: float, auto_rollback: bool, active: bool
) -> bool:
    """Whether the lapse has lasted for five checks of the monitor (the spec's trigger 4) and may end the test.

    A router that was cut off itself has heard nobody: it first listens for one lease's length.
    """
    return (
        auto_rollback
        and active
        and connected_for_s >= LEASE_S
        and lease.lapsed(now)
        and lease.lapsed_for(now) >= CHECKS_TO_ROLLBACK * check_interval_s
    )
