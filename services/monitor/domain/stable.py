"""Whether the stable model itself is bad, alone or together with the canary: an alert while it lasts, no verdict.

Judged by what has finished lately, all requests of it: a model that serves everybody is bad at what it does now, not
over an epoch. Evidence: n requests of which a share q failed are exp(-n KL(q || limit)) likely at most if the limit
holds (Chernoff's bound); of a mean, Core C (`statistics.MeanSums`).
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from schemas.v1.windows import Cell
from services.monitor.domain.checks import US_PER_MS, Check, number
from services.monitor.domain.evidence import errors_of
from services.monitor.domain.findings import BOTH_ARMS, STABLE_BAD
from services.monitor.domain.statistics import MeanSums

LATELY_S = 30
"""What has finished in so many seconds of broker time counts, and more where it is too little."""
LATELY_MIN = 30
LATELY_MAX_S = 600
LOUD = math.log(1000.0)
"""Evidence from which the stable model counts as bad."""
MIN_BAD = 3
MIN_WELL = 10


class Row(NamedTuple):
    """What one arm finished in one tick: requests, errors among them, and sums of the latencies in microseconds."""

    second: int
    done: int
    errors: int
    n: int
    total: int
    squares: int


@dataclass
class Recent:
    """What one arm finished lately."""

    rows: "deque[Row]" = field(default_factory=deque)

    def add(self, second: int, cells: Iterable[Cell]) -> None:
        """Take in one arm's cells of a tick, and forget what is too old."""
        own = list(cells)
        if own:
            sums = [sum(getattr(cell.latency, name) for cell in own) for name in ("n", "total", "squares")]
            done = sum(cell.done for cell in own)
            self.rows.append(Row(second, done, min(done, sum(map(errors_of, own))), *sums))
        while self.rows and self._old(second):
            self.rows.popleft()

    def _old(self, second: int) -> bool:
        age, first = second - self.rows[0].second, self.rows[0].done
        return age >= LATELY_MAX_S or (age >= LATELY_S and self.done - first >= LATELY_MIN)

    @property
    def done(self) -> int:
        """Requests."""
        return sum(row.done for row in self.rows)

    @property
    def errors(self) -> int:
        """Errors among them."""
        return sum(row.errors for row in self.rows)

    @property
    def latency(self) -> MeanSums:
        """Sums of the latencies."""
        return MeanSums(*(sum(row[index] for row in self.rows) for index in (3, 4, 5)))


@dataclass
class Episode:
    """Of one limit: how often the stable model was found bad, under which rules it is now and since which second, and
    in which epoch it was over the last time.
    """

    number: int = 0
    rules: list[str] = field(default_factory=list)
    since: int = 0
    ended_epoch: int = -1


class StableWatch:
    """The stable model against the lowest limits in force that would end the test if the canary exceeded them."""

    def __init__(self, checks: Sequence[Check]) -> None:
        self.limits: dict[str, float] = {}
        for check in checks:
            if check.absolute and check.action != "warn":
                self.limits[check.family] = min(check.threshold, self.limits.get(check.family, math.inf))
        self.episodes = {family: Episode() for family in self.limits}
        self._arms = {"a": Recent(), "b": Recent()}

    def tick(self, second: int, epoch: int, cells: Sequence[Cell]) -> list[dict[str, Any]]:
        """Take in a tick; the findings that it makes, as arguments."""
        for variant, recent in self._arms.items():
            recent.add(second, (cell for cell in cells if cell.variant == variant))
        found = []
        for family, episode in self.episodes.items():
            evidence = self._evidence(family)
            if episode.rules and second - episode.since >= LATELY_S and self._well(family):
                found += [self._finding(family, "stable_recovered", rule) for rule in episode.rules]
                episode.rules, episode.ended_epoch = [], epoch
            elif not episode.rules and evidence >= LOUD:
                both = self._exceeds(family, "b")
                kind, rule = ("both_arms", BOTH_ARMS) if both else ("stable_bad", STABLE_BAD)
                self._open(episode, f"{rule}.{family}", second)
                found.append(self._finding(family, kind, f"{rule}.{family}", log_e=evidence, limit=LOUD))
        return found

    def both(self, family: str, second: int, epoch: int) -> int:
        """A check has found both arms bad: the number of the episode that this belongs to.

        Its evidence is an epoch's, and stays when the arms are well again: it begins no second episode in that epoch.
        """
        episode = self.episodes[family]
        rule = f"{BOTH_ARMS}.{family}"
        if rule not in episode.rules and (episode.rules or episode.ended_epoch != epoch):
            self._open(episode, rule, second)
        return max(1, episode.number)

    @staticmethod
    def _open(episode: Episode, rule: str, second: int) -> None:
        episode.number += not episode.rules
        episode.rules.append(rule)
        episode.since = second

    def _evidence(self, family: str) -> float:
        """Evidence (ln) of how unlikely the stable model's figures are within the limit."""
        arm, limit = self._arms["a"], self.limits[family]
        if family == "errors":
            done, errors = arm.done, arm.errors
            return done * _divergence(errors / done, limit / 100.0) if errors >= MIN_BAD else 0.0
        return arm.latency.log_e_above(limit * US_PER_MS)

    def _exceeds(self, family: str, variant: str) -> bool:
        arm, limit = self._arms[variant], self.limits[family]
        if family == "errors":
            return arm.errors >= MIN_BAD and 100.0 * arm.errors > limit * arm.done
        mean = arm.latency.mean
        return arm.latency.n >= MIN_BAD and mean is not None and mean > limit * US_PER_MS

    def _well(self, family: str) -> bool:
        """Within the limit by what finished lately, and enough did."""
        arm = self._arms["a"]
        enough = arm.done if family == "errors" else arm.latency.n
        return enough >= MIN_WELL and not self._exceeds(family, "a")

    def _finding(self, family: str, kind: str, rule: str, **numbers: float) -> dict[str, Any]:
        limit = self.limits[family]
        shown = {variant: self._figures(family, arm) for variant, arm in self._arms.items()}
        (n_a, value_a), (n_b, value_b) = shown["a"], shown["b"]
        unit = "%" if family == "errors" else "ms"
        noun = "errors" if family == "errors" else "mean latency"
        text = (
            f"{noun} of A: {number(value_a)} {unit} of its latest {n_a} requests, limit {limit:g} {unit}; "
            f"B: {number(value_b)} {unit} of {n_b}"
        )
        return {
            "kind": kind, "rule": rule, "text": text, "number": self.episodes[family].number, "value": value_a,
            "threshold": limit, "unit": unit, "value_a": value_a, "value_b": value_b, "n_a": n_a, "n_b": n_b, **numbers,
        }  # fmt: skip

    @staticmethod
    def _figures(family: str, arm: Recent) -> tuple[int, float | None]:
        if family == "errors":
            return arm.done, 100.0 * arm.errors / arm.done if arm.done else None
        sums = arm.latency
        return sums.n, None if sums.mean is None else sums.mean / US_PER_MS

    def to_dict(self) -> dict[str, Any]:
        """Checkpoint."""
        return {
            "arms": {variant: [list(row) for row in arm.rows] for variant, arm in self._arms.items()},
            "episodes": {family: [e.number, e.rules, e.since, e.ended_epoch] for family, e in self.episodes.items()},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore a checkpoint of the same test."""
        self._arms = {variant: Recent(deque(Row(*row) for row in rows)) for variant, rows in state["arms"].items()}
        for family, (count, rules, since, ended) in state["episodes"].items():
            self.episodes[family] = Episode(count, list(rules), since, ended)


def _divergence(rate: float, limit: float) -> float:
    """Kullback-Leibler divergence of a rate above the limit from it; 0 where it is not above."""
    if rate <= limit or limit >= 1.0:
        return 0.0
    found = rate * math.log(rate / limit)
    return found + (1.0 - rate) * math.log((1.0 - rate) / (1.0 - limit)) if rate < 1.0 else found
