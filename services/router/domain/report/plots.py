"""Plots of a test over time as inline SVG, of numbers alone. Colours and fonts are the page's classes."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

from schemas.v1.record import Report, Series, TestChange
from services.router.domain.report.figures import happening, number, span

WIDTH, HEIGHT = 760, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 10, 26
_STEPS = (
    1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800,
)  # fmt: skip
_MAX_LINES = 5

Values = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Line:
    """A line through known values; ``style`` is its class, ``stepped`` holds a value until the next."""

    label: str
    values: Values
    style: str
    stepped: bool = False


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot: ``low`` and ``high`` bound its y-axis and what lies beyond is drawn at the edge."""

    title: str
    caption: str
    unit: str
    low: float
    high: float
    lines: list[Line]
    band: tuple[Values, Values] | None = None
    marks: list[tuple[float, str]] = field(default_factory=list)


def plots(report: Report) -> list[str]:
    """Figures, each of them complete HTML; none without a series."""
    series = report.series
    if series is None or not series.seconds:
        return []
    found = [_effect(report, series), _evidence(report, series), _latency(series), _split(series)]
    times = [float(second - series.seconds[0]) for second in series.seconds]
    events = _events(report.changes, series)
    return [_figure(plot, times, events) for plot in found if plot is not None]


def _effect(report: Report, series: Series) -> Plot | None:
    if not _known(series.effect):
        return None
    asked = report.configuration.success_criteria.min_improvement_threshold if report.configuration else 0.0
    settled = series.effect[len(series.effect) // 2 :]
    ends = [_last(series.effect_low), _last(series.effect_high), *_known(settled)]
    inner = [0.0, -asked, *(end for end in ends if end is not None)]
    low, high = min(inner), max(inner)
    pad = max(1.0, 0.25 * (high - low))
    return Plot(
        "Effect", f"B's effect on {series.metric} with its 95 % confidence sequence, valid at every look; "
        f"less is better, {asked:g} % less is asked for", "%", low - pad, high + pad,
        [Line("effect", series.effect, "effect")], (series.effect_low, series.effect_high),
        [(0.0, "zero"), (-asked, "asked")],
    )  # fmt: skip


def _evidence(report: Report, series: Series) -> Plot | None:
    guardrails = report.status.guardrails if report.status else []
    acting = {guardrail.name for guardrail in guardrails if guardrail.action != "warn"}
    rising = sorted(
        ((max(_known(values), default=-math.inf), name) for name, values in series.log_e.items() if name in acting),
        reverse=True,
    )
    if not rising or not series.limit:
        return None
    lines = [Line(name, series.log_e[name], f"line{i}") for i, (_, name) in enumerate(rising[:_MAX_LINES])]
    lines += [Line(name, series.log_e[name], "other") for _, name in rising[_MAX_LINES:]]
    own = [name for _, name in rising[:_MAX_LINES] if _known(series.limits.get(name, []))]
    limits = [Line(f"limit of {name}", series.limits[name], "limit", stepped=True) for name in own]
    top = max([rising[0][0], *series.limit, *(max(_known(line.values)) for line in limits)])
    least = min((min(_known(line.values), default=0.0) for line in lines), default=0.0)
    return Plot(
        "Evidence against the canary", "ln E of each guardrail that acts; one that reaches its limit fires. "
        "Units count afresh in each epoch, and the limit with them", "ln E", max(min(least, 0.0), -4.0), 1.08 * top,
        [*lines, Line("limit", series.limit, "limit", stepped=True), *limits],
    )  # fmt: skip


def _latency(series: Series) -> Plot | None:
    lines = [
        Line(f"{arm.upper()} {name}", values, f"arm-{arm} {name}", stepped=True)
        for arm in ("a", "b")
        for name in ("p50", "p95", "p99")
        if _known(values := series.latency_ms.get(f"{arm}.{name}", []))
    ]
    if not lines:
        return None
    top = max(max(_known(line.values)) for line in lines)
    return Plot(
        "Latency by variant", "quantiles of the requests that finished in each stretch", "ms", 0.0, 1.08 * top, lines
    )


def _split(series: Series) -> Plot:
    shares = [bp / 100 for bp in series.share_bp]
    return Plot(
        "Split", "the canary's share of the traffic, as applied", "%", 0.0, max(1.0, 1.25 * max(shares)),
        [Line("share of B", shares, "arm-b p50", stepped=True)],
    )  # fmt: skip


def _events(changes: Iterable[TestChange], series: Series) -> list[tuple[float, str]]:
    first, last = series.seconds[0], series.seconds[-1]
    return [
        (change.at_ms / 1000 - first, happening(change.kind))
        for change in changes
        if first < change.at_ms / 1000 <= last
    ]


def _figure(plot: Plot, times: Sequence[float], events: Sequence[tuple[float, str]]) -> str:
    end = max(times[-1], 1.0)
    height = (plot.high - plot.low) or 1.0

    def x(time: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(1.0, max(0.0, time / end))

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - min(1.0, max(0.0, (value - plot.low) / height)))

    parts = [*_grid(plot, end, x, y)]
    parts += [
        f'<line class="event" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
        f"<title>{escape(label)}, {escape(span(at))} after the start</title></line>"
        for at, label in events
    ]
    if plot.band is not None:
        parts += [f'<path class="band" d="{d}"/>' for d in _bands(times, plot.band, x, y)]
    parts += [
        f'<line class="{escape(style)}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        for value, style in plot.marks
    ]
    for line in plot.lines:
        parts.append(f'<path class="{escape(line.style)}" fill="none" d="{_path(times, line, x, y)}"/>')
        if (dot := _dot(times, line.values)) is not None and len(times) < 3:
            parts.append(f'<circle class="{escape(line.style)}" cx="{x(dot[0]):.1f}" cy="{y(dot[1]):.1f}" r="3"/>')
    return (
        f"<figure><h3>{escape(plot.title)}</h3><figcaption>{escape(plot.caption)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(plot.title)}">{"".join(parts)}</svg>'
        f"{_legend(plot)}</figure>"
    )


def _legend(plot: Plot) -> str:
    shown = [line for line in plot.lines if line.style != "other"]
    items = [
        f'<li><svg class="key" viewBox="0 0 24 8" aria-hidden="true"><path class="{escape(line.style)}" fill="none" '
        f'd="M0 4H24"/></svg>{escape(line.label)}</li>'
        for line in shown
    ]
    if len(shown) < len(plot.lines):
        names = ", ".join(line.label for line in plot.lines if line.style == "other")
        items.append(
            '<li><svg class="key" viewBox="0 0 24 8" aria-hidden="true"><path class="other" fill="none" d="M0 4H24"/>'
            f"</svg>{escape(names)}</li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>' if len(items) > 1 else ""


def _grid(plot: Plot, end: float, x: Callable[[float], float], y: Callable[[float], float]) -> Iterable[str]:
    for value in nice(plot.low, plot.high):
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        yield f'<text class="tick end" x="{LEFT - 6}" y="{y(value) + 4:.1f}">{escape(number(value, 3))}</text>'
    yield f'<text class="tick" x="2" y="{TOP + 4}">{escape(plot.unit)}</text>'
    step = next((step for step in _STEPS if end / step <= 8), 7 * 86_400 * math.ceil(end / (8 * 7 * 86_400)))
    for index in range(int(end // step) + 1):
        at = float(index * step)
        yield f'<text class="tick middle" x="{x(at):.1f}" y="{HEIGHT - 8}">{escape(span(at))}</text>'


def _path(times: Sequence[float], line: Line, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    parts: list[str] = []
    pen = False
    for time, value in zip(times, line.values, strict=False):
        if value is None or not math.isfinite(value):
            pen = False
            continue
        if pen and line.stepped:
            parts.append(f"H{x(time):.1f}")
        parts.append(f"{'L' if pen else 'M'}{x(time):.1f} {y(value):.1f}")
        pen = True
    return "".join(parts)


def _bands(
    times: Sequence[float], band: tuple[Values, Values], x: Callable[[float], float], y: Callable[[float], float]
) -> list[str]:
    paths = []
    run: list[tuple[float, float, float]] = []
    for time, low, high in [*zip(times, *band, strict=False), (0.0, None, None)]:
        if low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
            run.append((time, low, high))
            continue
        if len(run) > 1:
            upper = "".join(f"{'L' if i else 'M'}{x(t):.1f} {y(h):.1f}" for i, (t, _, h) in enumerate(run))
            paths.append(upper + "".join(f"L{x(t):.1f} {y(low):.1f}" for t, low, _ in reversed(run)) + "Z")
        run = []
    return paths


def _dot(times: Sequence[float], values: Values) -> tuple[float, float] | None:
    pairs = [(t, v) for t, v in zip(times, values, strict=False) if v is not None and math.isfinite(v)]
    return pairs[-1] if pairs else None


def nice(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within [low, high], about so many."""
    width = high - low
    if not (width > 0 and math.isfinite(width)):
        return [low] if math.isfinite(low) else []
    power = 10.0 ** math.floor(math.log10(width / about))
    step = next(power * factor for factor in (1, 2, 5, 10) if width / (power * factor) <= about)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) + 0.0 for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _known(values: Values) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _last(values: Values) -> float | None:
    return next(iter(_known(values)[::-1]), None)
