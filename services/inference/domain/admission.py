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


class Admission(Generic[T]):
    """Slots and queue of one model. Tickets are any hashable objects, unique while they are inside."""

    def __init__(self, capacity: int, max_queue: int) -> None:
        if capacity < 1 or max_queue < 0:
            raise ValueError("capacity must be at least 1 and max_queue at least 0")
        self.capacity = capacity
        self.max_queue = max_queue
        self.running = 0
        self.queued = 0
        self._waiting: OrderedDict[str, deque[T]] = OrderedDict()
        self._service_s = 0.0

    @property
    def free(self) -> int:
        """Slots that nobody holds."""
        return self.capacity - self.running

    def arrive(self, ticket: T, caller: str) -> Arrival[T]:
        """Take a slot, else a place in the queue, else nothing.

        In a full queue a caller with fewer waiting takes the youngest place of the one with the most.
        """
        if self.running < self.capacity:
            self.running += 1
            return Arrival(admitted=True)
        evicted: T | None = None
        if self.queued >= self.max_queue:
            if not self._waiting:
                return Arrival(admitted=False)
            greediest = max(self._waiting, key=lambda name: len(self._waiting[name]))
            if len(self._waiting[greediest]) <= len(self._waiting.get(caller, ())) + 1:
                return Arrival(admitted=False)
            evicted = self._waiting[greediest].pop()
            self.queued -= 1
        self._waiting.setdefault(caller, deque()).append(ticket)
        self.queued += 1
        return Arrival(admitted=False, queued=True, evicted=evicted)

    def leave(self, served_s: float | None) -> T | None:
        """Give a slot back after ``served_s`` seconds; the ticket that takes it over, if any waits.

        None when the slot was not used, as by a ticket whose caller has gone.
        """
        if served_s is not None:
            self._service_s += (served_s - self._service_s) * (_SMOOTHING if self._service_s else 1.0)
        if not self._waiting:
            self.running -= 1
            return None
        caller, tickets = next(iter(self._waiting.items()))
        ticket = tickets.popleft()
        self.queued -= 1
        if tickets:
            self._waiting.move_to_end(caller)
        else:
            del self._waiting[caller]
        return ticket

    def withdraw(self, ticket: T, caller: str) -> bool:
        """Take a waiting ticket out; False when it does not wait (it runs, or was evicted)."""
        tickets = self._waiting.get(caller)
        if tickets is None or ticket not in tickets:
            return False
        tickets.remove(ticket)
        self.queued -= 1
        if not tickets:
            del self._waiting[caller]
        return True

    def retry_after(self) -> int:
        """Whole seconds, 1 to 60, after which a place is likely: the queue at the rate of late."""
        expected = (self.queued + 1) * self._service_s / self.capacity
        return max(1, min(_MAX_RETRY_AFTER_S, math.ceil(expected)))
