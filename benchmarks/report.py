"""Figures beside their targets: what every benchmark returns and how the table is printed."""

import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity. ``values`` are its values over rounds, in ``unit``; the median counts.

    ``must`` and ``aim`` are targets in the same unit, None where there is none; ``higher`` tells which way is better.
    """

    name: str
    values: tuple[float, ...]
    unit: str = ""
    must: float | None = None
    aim: float | None = None
    higher: bool = False

    @property
    def median(self) -> float:
        """Median over rounds; NaN when nothing was measured."""
        return statistics.median(self.values) if self.values else math.nan

    def against(self, target: float | None) -> str:
        """How many times better (above 1) or worse (below 1) than a target; empty without one."""
        if target is None or not self.values:
            return ""
        best, worst = (self.median, target) if self.higher else (target, self.median)
        return f"x{best / worst:.2f}" if worst > 0 else "x inf"

    def verdict(self) -> str:
        """Where the median stands between the targets."""
        if not self.values or math.isnan(self.median):
            return "not measured"
        for name, target in (("aim met", self.aim), ("met", self.must)):
            if target is not None and (self.median >= target if self.higher else self.median <= target):
                return name
        return "" if self.must is None and self.aim is None else "MISSED" if self.must is not None else "aim missed"


def figure(
    name: str,
    value: float | Sequence[float],
    unit: str = "",
    *,
    must: float | None = None,
    aim: float | None = None,
    higher: bool = False,
) -> Figure:
    """A figure of one value or of several rounds."""
    values = (float(value),) if isinstance(value, int | float) else tuple(map(float, value))
    return Figure(name, values, unit, must, aim, higher)


def percentile(values: Sequence[float], q: float) -> float:
    """The nearest-rank percentile, ``q`` from 0 to 1; NaN of nothing."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)]


def say(text: str) -> None:
    """Progress, on stderr, so that the table alone is on stdout."""
    print(text, file=sys.stderr, flush=True)


def number(value: float) -> str:
    """Three significant digits, with thousands separated."""
    return "" if math.isnan(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(figures: Iterable[Figure]) -> str:
    """The figures as a Markdown table: median, range over rounds, targets and how the median relates to them."""
    head = ("figure", "median", "range", "unit", "must", "aim", "to must", "to aim", "")
    rows = [head]
    for one in figures:
        spread = f"{number(min(one.values))}..{number(max(one.values))}" if len(one.values) > 1 else ""
        sign = ">= " if one.higher else "<= "
        targets = ["" if t is None else sign + number(t) for t in (one.must, one.aim)]
        rows.append(
            (one.name, number(one.median), spread, one.unit, *targets, one.against(one.must), one.against(one.aim),
             one.verdict())
        )  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    left = {0, 3, 8}
    rule = ["-" * width if i in left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    return "\n".join([line(head), line(rule), *map(line, rows[1:])])
