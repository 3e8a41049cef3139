"""Which checks fail, and for how long: a bug in a check is not a bad model."""

from collections.abc import Iterable, Mapping
from typing import Any

from schemas.v1.common import Message

FAILURES = 5
"""Consecutive failures after which a check is reported, and check intervals after which trigger 4 acts."""


class Episode(Message):
    """A run of failed ticks of one check; ``number`` counts the check's reported runs."""

    number: int = 1
    count: int = 0
    since: int = 0
    error: str = ""


class CheckHealth:
    """Consecutive failures by check, in ticks and seconds of broker time."""

    def __init__(self) -> None:
        self._failing: dict[str, Episode] = {}
        self._episodes: dict[str, int] = {}

    @property
    def consecutive(self) -> int:
        """The most failures in a row of any check, now."""
        return max((episode.count for episode in self._failing.values()), default=0)

    def note(
        self, second: int, names: Iterable[str], failed: Mapping[str, Exception]
    ) -> list[tuple[str, Episode, bool]]:
        """Count a tick; (check, its run of failures, whether it has just recovered) for each change to report."""
        changes = []
        for name in names:
            exc = failed.get(name)
            episode = self._failing.get(name)
            if exc is None:
                if episode is not None:
                    del self._failing[name]
                    if episode.count >= FAILURES:
                        changes.append((name, episode, True))
                continue
            if episode is None:
                episode = self._failing[name] = Episode(number=self._episodes.get(name, 0) + 1, since=second)
            episode.count += 1
            episode.error = f"{type(exc).__name__}: {exc}"[:300]
            if episode.count == FAILURES:
                self._episodes[name] = episode.number
                changes.append((name, episode, False))
        return changes

    def longest(self, second: int) -> tuple[str, int] | None:
        """(check, seconds) of the longest present run of failures."""
        if not self._failing:
            return None
        name = min(self._failing, key=lambda key: (self._failing[key].since, key))
        return name, second - self._failing[name].since

    def to_dict(self) -> dict[str, Any]:
        """Checkpoint."""
        return {
            "failing": {name: episode.model_dump() for name, episode in self._failing.items()},
            "episodes": dict(self._episodes),
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "CheckHealth":
        """Restore a checkpoint."""
        health = cls()
        health._failing = {name: Episode.model_validate(value) for name, value in state["failing"].items()}
        health._episodes = dict(state["episodes"])
        return health
