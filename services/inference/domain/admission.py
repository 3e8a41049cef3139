"""Who may run now, who waits, and who is turned away at once.

A fixed number of slots, a bounded queue, and turns taken between callers, so that one that sends a
thousand requests delays another's first by one turn and not by a thousand.
"""

import math
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

_SMOOTHING = 0.1
_MAX_RETRY_AFTER_S = 60


@dataclass(frozen=True, slots=True)
class Arrival(Generic[T]):
    """What became of an arrival: ``admitted``, or ``queued``, or neither (turned away).

    ``evicted`` is another caller's waiting request that lost its place to this one.
    """

    admitted: bool
    queued: bool = False
    evicted: T | None = None


class _Party(Generic[T]):
    """Those who wait for one caller: its members, by turns, each with its tickets in order."""

    __slots__ = ("members", "size")

    def __init__(self) -> None:
        self.size = 0
        self.members: OrderedDict[str, deque[T]] = OrderedDict()

    def add(self, member: str, ticket: T) -> None:
        self.members.setdefault(member, deque()).append(ticket)
        self.size += 1

    def next(self) -> T:
        """The ticket whose turn it is."""
        member, tickets = next(iter(self.members.items()))
        ticket = tickets.popleft()
        self.size -= 1
        if tickets:
            self.members.move_to_end(member)
        else:
            del self.members[member]
        return ticket

    def youngest_of_greediest(self) -> T:
        greediest = self._greediest()
        ticket = self.members[greediest].pop()
        self.size -= 1
        if not self.members[greediest]:
            del self.members[greediest]
        return ticket

    def greedier_than(self, member: str) -> bool:
        """Whether somebody here has more places than ``member`` would have with one more."""
        return len(self.members[self._greediest()]) > len(self.members.get(member, ())) + 1

    def _greediest(self) -> str:
        return max(self.members, key=lambda name: len(self.members[name]))


class Admission(Generic[T]):
    """Slots and queue of one model. Tickets are any hashable objects, unique while they are inside.

    A caller is `name` or `name/member`: callers take turns, and the members of one take turns for its own.
    """

    def __init__(self, capacity: int, max_queue: int) -> None:
        if capacity < 1 or max_queue < 0:
            raise ValueError("capacity must be at least 1 and max_queue at least 0")
        self.capacity = capacity
        self.max_queue = max_queue
        self.running = 0
        self.queued = 0
        self._waiting: OrderedDict[str, _Party[T]] = OrderedDict()
        self._service_s = 0.0

    @property
    def free(self) -> int:
        """Slots that nobody holds."""
        return self.capacity - self.running

    def arrive(self, ticket: T, caller: str) -> Arrival[T]:
        """Take a slot, else a place in the queue, else nothing.

        In a full queue a caller with fewer waiting takes the youngest place of the one with the most; failing that, a
        member that of its own caller's greediest.
        """
        if self.running < self.capacity:
            self.running += 1
            return Arrival(admitted=True)
        name, _, member = caller.partition("/")
        evicted: T | None = None
        if self.queued >= self.max_queue:
            loser = self._loser(name, member)
            if loser is None:
                return Arrival(admitted=False)
            evicted = loser.youngest_of_greediest()
            self.queued -= 1
        self._waiting.setdefault(name, _Party()).add(member, ticket)
        self.queued += 1
        return Arrival(admitted=False, queued=True, evicted=evicted)

    def _loser(self, name: str, member: str) -> _Party[T] | None:
        if not self._waiting:
            return None
        own = self._waiting.get(name)
        greediest = max(self._waiting.values(), key=lambda party: party.size)
        if greediest.size > (own.size if own is not None else 0) + 1:
            return greediest
        return own if own is not None and own.greedier_than(member) else None

    def leave(self, served_s: float | None) -> T | None:
        """Give a slot back after ``served_s`` seconds; the ticket that takes it over, if any waits.

        None when the slot was not used, as by a ticket whose caller has gone.
        """
        if served_s is not None:
            self._service_s += (served_s - self._service_s) * (_SMOOTHING if self._service_s else 1.0)
        if not self._waiting:
            self.running -= 1
            return None
        name, party = next(iter(self._waiting.items()))
        ticket = party.next()
        self.queued -= 1
        if party.size:
            self._waiting.move_to_end(name)
        else:
            del self._waiting[name]
        return ticket

    def withdraw(self, ticket: T, caller: str) -> bool:
        """Take a waiting ticket out; False when it does not wait (it runs, or was evicted)."""
        name, _, member = caller.partition("/")
        party = self._waiting.get(name)
        tickets = party.members.get(member) if party is not None else None
        if party is None or tickets is None or ticket not in tickets:
            return False
        tickets.remove(ticket)
        party.size -= 1
        self.queued -= 1
        if not tickets:
            del party.members[member]
        if not party.size:
            del self._waiting[name]
        return True

    def retry_after(self) -> int:
        """Whole seconds, 1 to 60, after which a place is likely: the queue at the rate of late."""
        expected = (self.queued + 1) * self._service_s / self.capacity
        return max(1, min(_MAX_RETRY_AFTER_S, math.ceil(expected)))
