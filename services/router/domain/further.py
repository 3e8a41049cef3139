"""Refusals that are counted together because they came too fast for a record each. Pure."""

from collections import Counter

SEVERAL = "several"
"""Source of refusals from more than one address."""
FOR_KEY_ROLE_OR_RATE = frozenset({401, 403, 429})


class Further:
    """How many there were, by status, and where they came from."""

    def __init__(self) -> None:
        self._by_status: Counter[int] = Counter()
        self._source = ""

    def __bool__(self) -> bool:
        return bool(self._by_status)

    def add(self, status: int, source: str) -> None:
        """One more."""
        self._source = source if self._source in {"", source} else SEVERAL
        self._by_status[status] += 1

    @property
    def source(self) -> str:
        """The one source of all, or SEVERAL."""
        return self._source

    def shown(self) -> dict[str, int]:
        """For the audit: all, those for want of a key, role or rate, and by status."""
        counted = sum(self._by_status[status] for status in FOR_KEY_ROLE_OR_RATE)
        by_status = {f"status_{status}": count for status, count in sorted(self._by_status.items())}
        return {"refused": self._by_status.total(), "for_key_role_or_rate": counted, **by_status}
