"""How much traffic a stable model can take back, from what it has shown. Pure; times are monotonic seconds.

A step down moves units from B to A. It is made only as far as the stable model's load after it stays near what the
model has carried without queueing, and not while the model queues or is slower than usual (docs/decisions/0012).
"""

import math
from collections import deque
from dataclasses import dataclass

from schemas.v1.experiment import SLOTS

SLOT_S = 5.0
"""Loads are means over so many seconds, so that an instant is not taken for a load."""
SHOWN_S = 600.0
"""For so long counts what a model has shown."""
BEYOND_SHOWN = 1.25
"""A step may go so far beyond the highest load that was carried without queueing."""
OCCUPIED = 0.9
"""And so far into the places that there are."""
SLOWER = 1.5
"""Nothing is added to a model that takes so many times as long as usual."""
MIN_ANSWERS = 20
"""Fewer answers say nothing about latency."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one model shows: its ready workers' places, the requests that wait, and mean numbers of requests on it.

    ``running`` is of the last seconds, ``peak`` the highest of the last ten minutes without queueing; both None while
    that is not known yet. ``slower`` is recent latency over usual latency, None when too few answers tell.
    """

    workers: int = 0
    capacity: int = 0
    queued: int = 0
    running: float | None = None
    peak: float | None = None
    slower: float | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """The next share, or None and what it waits for: one sentence for each kind of reason, with its figures apart."""

    share_bp: int | None
    waiting: str = ""
    figures: str = ""


@dataclass(slots=True)
class _Slot:
    number: int
    samples: int = 0
    running: int = 0
    queued: bool = False
    answers: int = 0
    logs: float = 0.0


class Gauge:
    """The record of one model over ten minutes, in slots of ``slot_s`` seconds."""

    def __init__(self, slot_s: float = SLOT_S) -> None:
        self._slot_s = slot_s
        self._slots: deque[_Slot] = deque(maxlen=round(SHOWN_S / SLOT_S))
        self._now = Load()

    def sample(self, now: float, *, workers: int, capacity: int, running: int, queued: int) -> None:
        """What the model's ready workers say now, summed."""
        slot = self._slot(now)
        slot.samples += 1
        slot.running += running
        slot.queued |= queued > 0
        self._now = Load(workers=workers, capacity=capacity, queued=queued)

    def answered(self, now: float, seconds: float) -> None:
        """A request of this router's was answered after so many seconds."""
        slot = self._slot(now)
        slot.answers += 1
        slot.logs += math.log(max(seconds, 1e-6))

    def load(self, now: float) -> Load:
        """The model as it stands."""
        current = int(now / self._slot_s)
        oldest = current - self._slots.maxlen if self._slots.maxlen else 0
        shown = [slot for slot in self._slots if slot.number >= oldest]
        recent = [slot for slot in shown if slot.number >= current - 1]
        whole = [slot for slot in shown if slot.number < current and slot.samples]
        samples = sum(slot.samples for slot in recent)
        if not whole or not samples:
            return self._now
        return Load(
            workers=self._now.workers,
            capacity=self._now.capacity,
            queued=self._now.queued,
            running=sum(slot.running for slot in recent) / samples,
            peak=max((slot.running / slot.samples for slot in whole if not slot.queued), default=0.0),
            slower=_slower(recent, [slot for slot in shown if slot.number < current - 1]),
        )

    def _slot(self, now: float) -> _Slot:
        number = int(now / self._slot_s)
        if not self._slots or self._slots[-1].number != number:
            self._slots.append(_Slot(number))
        return self._slots[-1]


def _slower(recent: list[_Slot], before: list[_Slot]) -> float | None:
    """Ratio of geometric means, which one long answer among many does not move."""
    answers, earlier = sum(slot.answers for slot in recent), sum(slot.answers for slot in before)
    if min(answers, earlier) < MIN_ANSWERS:
        return None
    return math.exp(sum(slot.logs for slot in recent) / answers - sum(slot.logs for slot in before) / earlier)


def next_step(share_bp: int, wanted_bp: int, *, model: str, stable: Load, canary: Load) -> Step:
    """B's next share on its way from ``share_bp`` down to ``wanted_bp``; ``model`` names the stable one.

    The whole way where the stable model can take it, else the largest part that it can.
    """
    why = _not_now(model, stable)
    if why is not None:
        return why
    bound = _bound(stable)
    if _after(share_bp, wanted_bp, stable, canary) <= bound:
        return Step(wanted_bp)
    low, high = wanted_bp, share_bp  # `low` does not fit, `high` is where B is
    while high - low > 1:
        middle = (low + high) // 2
        if _after(share_bp, middle, stable, canary) <= bound:
            high = middle
        else:
            low = middle
    if high < share_bp:
        return Step(high)
    figures = f"{stable.running or 0:.1f} requests run on {stable.capacity} places, {stable.peak or 0:.1f} were shown"
    return Step(None, f"room for more at '{model}'", figures)


def _not_now(model: str, stable: Load) -> Step | None:
    if not stable.workers:
        return Step(None, f"a ready worker of '{model}'", "none is")
    if stable.running is None:
        return Step(None, f"the load of '{model}' to be known", "too little has been heard")
    if stable.queued:
        return Step(None, f"the queue of '{model}' to empty", f"{stable.queued} requests wait")
    if stable.slower is not None and stable.slower > SLOWER:
        return Step(None, f"'{model}' to answer as fast as usual", f"it takes {stable.slower:.2f} times as long")
    return None


def _bound(stable: Load) -> float:
    """The load that the stable model may have; one more request for each worker is never too bold a step."""
    peak = stable.peak or 0.0
    return min(max(BEYOND_SHOWN * peak, peak + stable.workers), OCCUPIED * stable.capacity)


def _after(share_bp: int, to_bp: int, stable: Load, canary: Load) -> float:
    """The stable model's load when B has ``to_bp``."""
    running = stable.running or 0.0
    grown = running * (SLOTS - to_bp) / (SLOTS - share_bp) if share_bp < SLOTS else 0.0
    if share_bp * 2 <= SLOTS:
        return grown
    # With little of the traffic its own load tells little of the whole: what B carries comes to it, too.
    return max(grown, running + (canary.running or 0.0) * (share_bp - to_bp) / share_bp)
