"""Figures for monitoring systems, folded from ALERTS so that every replica and every restart has the same ones."""

from collections import OrderedDict
from dataclasses import dataclass, field

from schemas.v1.alerts import Alert
from schemas.v1.common import AlertLevel
from services.alerts.domain.incident import incident_key, rank

_TESTS = 200


@dataclass
class TestBoard:
    """One test's figures; what belongs to no test is under the empty id."""

    __test__ = False

    totals: dict[AlertLevel, int] = field(default_factory=lambda: dict.fromkeys(AlertLevel, 0))
    last_ms: int = 0
    active: set[str] = field(default_factory=set)


@dataclass
class Board:
    """The latest tests' figures; the longest silent test gives way."""

    tests: "OrderedDict[str, TestBoard]" = field(default_factory=OrderedDict)

    def add(self, alert: Alert) -> None:
        """Take in one notification. An incident counts as active from WARNING up until it is resolved."""
        test = alert.test_id or ""
        board = self.tests.setdefault(test, TestBoard())
        self.tests.move_to_end(test)
        if len(self.tests) > _TESTS:
            self.tests.popitem(last=False)
        board.last_ms = max(board.last_ms, alert.at_ms)
        if alert.resolved:
            board.active.discard(incident_key(alert))
            return
        board.totals[alert.level] += 1
        if rank(alert.level) >= rank(AlertLevel.WARNING):
            board.active.add(incident_key(alert))
