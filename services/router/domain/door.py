"""Who may come in: keys, and how often wrong ones may be tried."""

import ipaddress
import math
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import lru_cache

from services.router.domain.auth import KeyRing, Principal, bearer, digest_of
from services.router.domain.refusals import TooMany, Unauthenticated

WINDOW_S = 60.0
MAX_SOURCES = 10_000
"""Addresses whose failures are remembered; the one that failed longest ago is forgotten first."""
MAX_PLACES = 256
"""Addresses that are remembered for each key."""


class Guesses:
    """Wrong keys by where they came from: over ``per_minute`` in a minute are too many; 0 allows any number."""

    def __init__(self, per_minute: int) -> None:
        self._limit = per_minute
        self._failed: OrderedDict[str, deque[float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._failed)

    def wait(self, source: str, now_s: float) -> int | None:
        """Whole seconds until the source may try again; None where it may now."""
        times = self._failed.get(network(source))
        if times is None or len(times) <= self._limit or now_s - times[0] >= WINDOW_S:
            return None
        return max(1, math.ceil(WINDOW_S - (now_s - times[0])))

    def waiting(self, now_s: float) -> int:
        """How many sources have to wait now."""
        return sum(
            len(times) > self._limit and now_s - times[0] < WINDOW_S for times in self._failed.values()
        )

    def failed(self, source: str, now_s: float) -> bool:
        """A key from there was wrong; whether that was the one too many."""
        if not self._limit:
            return False
        waited = self.wait(source, now_s) is not None
        place = network(source)
        times = self._failed.pop(place, None) or deque(maxlen=self._limit + 1)
        times.append(now_s)
        self._failed[place] = times
        while self._failed:
            oldest = next(iter(self._failed))
            if len(self._failed) <= MAX_SOURCES and now_s - self._failed[oldest][-1] < WINDOW_S:
                break
            del self._failed[oldest]
        return not waited and self.wait(source, now_s) is not None


@lru_cache(maxsize=4096)
def network(source: str) -> str:
    """What counts as one source: an IPv4 address, 64 bits of an IPv6 address (whoever has one has them all), a name."""
    try:
        address = ipaddress.ip_address(source)
    except ValueError:
        return source
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
        address = address.ipv4_mapped
    return str(address)


class Door:
    """The ring of keys, guarded. From where too many wrong keys came, only keys that were good from there are let in.

    All others are not even compared, so nothing can be learnt by trying. ``failed_per_minute`` 0: no such guard.
    """

    def __init__(self, ring: KeyRing, failed_per_minute: int) -> None:
        self.ring = ring
        self._guesses = Guesses(failed_per_minute)
        self._places: dict[bytes, OrderedDict[str, None]] = {}
        self._guessed: Callable[[str], None] = lambda _source: None
        ring.on_change(self._forget)

    def on_guessing(self, callback: Callable[[str], None]) -> None:
        """Call ``callback`` with a source when it begins to be kept waiting, once each time; quick, not async."""
        self._guessed = callback

    def enter(
        self, header: str | None, source: str, now_s: float, first: Callable[[Principal, str], None] | None = None
    ) -> Principal:
        """Who comes with this `Authorization` header. Raises Unauthenticated, and TooMany with the seconds to wait.

        ``first`` is called where this key has not been seen from there; quick, not async.
        """
        try:
            token = bearer(header)
        except Unauthenticated:
            self._guard(None, source, now_s)
            raise
        digest = digest_of(token)
        if self._guesses:
            self._guard(digest, source, now_s)
        who = self.ring.holder(digest)
        if who is None:
            if self._guesses.failed(source, now_s):
                self._guessed(source)
            raise Unauthenticated(
                "unknown, expired or revoked API key: send one that is good, or ask an admin for one"
            )
        places = self._places.get(digest)
        if places is None or source not in places:
            self._remember(digest, source)
            if first is not None:
                first(who, source)
        return who

    def waiting(self, now_s: float) -> int:
        """From how many sources too many wrong keys came."""
        return self._guesses.waiting(now_s)

    def knows(self, header: str | None, source: str, now_s: float) -> Principal | None:
        """Who `enter` would let in; to look leaves no trace."""
        try:
            digest = digest_of(bearer(header))
            self._guard(digest, source, now_s)
        except (Unauthenticated, TooMany):
            return None
        return self.ring.holder(digest)

    def _guard(self, digest: bytes | None, source: str, now_s: float) -> None:
        wait = self._guesses.wait(source, now_s)
        if wait is None or (digest is not None and source in self._places.get(digest, ())):
            return
        raise TooMany(
            f"too many wrong API keys came from this address: wait {wait} s (keys that were good from here go on)",
            code="too_many_failed_keys", retry_after_s=wait,
        )  # fmt: skip

    def _remember(self, digest: bytes, source: str) -> None:
        places = self._places.setdefault(digest, OrderedDict())
        places[source] = None
        if len(places) > MAX_PLACES:
            places.popitem(last=False)

    def _forget(self) -> None:
        self._places = {digest: places for digest, places in self._places.items() if self.ring.holder(digest)}
