"""The newest alerts, deduplicated as deliveries are: one item for each incident and rise of its level."""

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from schemas.v1.alerts import Alert
from services.alerts.domain.board import Board
from services.alerts.domain.incident import incident_key, rank


@dataclass
class Item:
    """One alert as it was first raised; ``repeats`` counts what came later and told nothing new."""

    event_id: str
    alert: Alert
    sequence: int
    repeats: int = 0
    last_ms: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """An event and its place in ALERTS."""

    sequence: int
    event_id: str


@dataclass
class History:
    """Fold of ALERTS in its order, keeping ``retention`` items and as many event ids as ``remembered``.

    ``position`` is the last sequence that was read, whatever it held; ``created`` when the stream was.
    """

    retention: int
    remembered: int = 100_000
    items: deque[Item] = field(default_factory=deque)
    board: Board = field(default_factory=Board)
    position: int = 0
    created: str = ""
    _open: "OrderedDict[str, Item]" = field(default_factory=OrderedDict)
    _latest: "OrderedDict[str, Place]" = field(default_factory=OrderedDict)
    _before: "OrderedDict[str, Place]" = field(default_factory=OrderedDict)
    _seen: "OrderedDict[str, None]" = field(default_factory=OrderedDict)

    def add(self, sequence: int, event_id: str, alert: Alert) -> None:
        """Take in the next alert of the stream; an event id that was seen before changes nothing."""
        if event_id in self._seen:
            return
        self._seen[event_id] = None
        if len(self._seen) > self.remembered:
            self._seen.popitem(last=False)
        key = incident_key(alert)
        self._put_in_line(key, Place(sequence, event_id))
        known = self._open.get(key)
        if alert.resolved:
            if known is not None:
                del self._open[key]
                self._append(Item(event_id, alert, sequence, last_ms=alert.at_ms))
        elif known is not None and rank(known.alert.level) >= rank(alert.level):
            known.repeats += 1
            known.last_ms = max(known.last_ms, alert.at_ms)
        else:
            item = Item(event_id, alert, sequence, last_ms=alert.at_ms)
            self._open[key] = item
            self._open.move_to_end(key)
            if len(self._open) > self.remembered:
                self._open.popitem(last=False)
            self._append(item)

    def holds(self, event_id: str) -> bool:
        """Whether an event has been taken in."""
        return event_id in self._seen

    def before(self, event_id: str) -> Place | None:
        """The event of the same incident that came before this one."""
        return self._before.get(event_id)

    def known(self, alert: Alert) -> bool:
        """Whether the incident stands open at this level or above."""
        item = self._open.get(incident_key(alert))
        return item is not None and rank(item.alert.level) >= rank(alert.level)

    def standing(self, test_id: str) -> list[tuple[str, Alert]]:
        """(event id, alert) of a test's incidents that nothing has resolved."""
        return [(item.event_id, item.alert) for item in self._open.values() if item.alert.test_id == test_id]

    def newest(self, limit: int, test_id: str | None = None) -> tuple[list[Item], int]:
        """(items newest first, how many there are), of one test where it is named."""
        matching = [item for item in reversed(self.items) if test_id is None or item.alert.test_id == test_id]
        return matching[:limit], len(matching)

    def _put_in_line(self, incident: str, place: Place) -> None:
        previous = self._latest.get(incident)
        if previous is not None:
            self._before[place.event_id] = previous
        self._latest[incident] = place
        self._latest.move_to_end(incident)
        for known in (self._latest, self._before):
            if len(known) > self.remembered:
                known.popitem(last=False)

    def _append(self, item: Item) -> None:
        self.board.add(item.alert)
        self.items.append(item)
        while len(self.items) > self.retention:
            self.items.popleft()
