"""How many routers serve now: each enforces its share of every limit."""

BEAT_S = 1.0
GONE_S = 3.5 * BEAT_S
"""Three beats missed, and half of one for a busy machine."""
MAX_PEERS = 1000


class Peers:
    """The other routers, by when they were heard last (seconds of the monotonic clock)."""

    def __init__(self) -> None:
        self._heard: dict[str, float] = {}

    def heard(self, router: str, now_s: float) -> bool:
        """One of them lives; whether it is a new one."""
        new = router not in self._heard
        if new and len(self._heard) >= MAX_PEERS:
            return False
        self._heard[router] = now_s
        return new

    def left(self, router: str) -> None:
        """One of them has stopped."""
        self._heard.pop(router, None)

    def forgive(self, now_s: float) -> None:
        """Nobody could be heard until now: everybody counts as heard."""
        self._heard = dict.fromkeys(self._heard, now_s)

    def live(self, now_s: float) -> int:
        """Routers that serve, this one included; those that fell silent are forgotten."""
        self._heard = {router: at for router, at in self._heard.items() if now_s - at <= GONE_S}
        return 1 + len(self._heard)
