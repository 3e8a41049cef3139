"""Windows of one second, summed over longer ones of one length, test by test. Time is the broker's."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas import sketch
from schemas.v1.common import ERRORS, Outcome
from schemas.v1.integrations import MetricWindow, VariantFigures
from schemas.v1.windows import Cell, Moments


@dataclass(slots=True)
class Sums:
    """One variant of one test. Times in microseconds, cost in nano-dollars."""

    done: int = 0
    errors: int = 0
    client_errors: int = 0
    latency: Moments = field(default_factory=Moments)
    ttft: Moments = field(default_factory=Moments)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_nano: int = 0

    def add(self, cell: Cell) -> None:
        """Take in a cell."""
        self.done += cell.done
        self.errors += sum(cell.outcomes.get(outcome, 0) for outcome in ERRORS)
        self.client_errors += cell.outcomes.get(Outcome.CLIENT_ERROR, 0)
        for own, more in ((self.latency, cell.latency), (self.ttft, cell.ttft)):
            own.n += more.n
            own.total += more.total
            sketch.merge(own.bins, more.bins)
        self.prompt_tokens += cell.prompt_tokens
        self.completion_tokens += cell.completion_tokens
        self.cost_nano += cell.cost.total

    def figures(self, least: int) -> VariantFigures:
        """As integrations are told them: of fewer than ``least`` requests counts alone."""
        if self.done < least:
            return VariantFigures(
                requests=self.done, errors=self.errors, client_errors=self.client_errors, prompt_tokens=None,
                completion_tokens=None, cost=None, withheld=True,
            )  # fmt: skip
        p95 = sketch.quantile(self.latency.bins, 0.95)
        return VariantFigures(
            requests=self.done, errors=self.errors, client_errors=self.client_errors,
            error_rate=100.0 * self.errors / self.done if self.done else None,
            avg_latency_ms=_mean_ms(self.latency), latency_p95_ms=None if p95 is None else p95 / 1000,
            avg_ttft_ms=_mean_ms(self.ttft), prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens, cost=self.cost_nano / 1e9,
        )  # fmt: skip


def _mean_ms(moments: Moments) -> float | None:
    return moments.total / moments.n / 1000 if moments.n else None


@dataclass(frozen=True, slots=True)
class Closed:
    """A window that is over: when it began, and the sums by test and variant."""

    begins_s: int
    tests: Mapping[str, Mapping[str, Sums]]


class WindowFold:
    """The open window of ``seconds``, which begins at a multiple of its length.

    The same messages in the same order give the same windows, wherever reading begins before the first of them.
    """

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds
        self._begins_s: int | None = None
        self._tests: dict[str, dict[str, Sums]] = {}

    def add(self, time_ms: int, cells: list[Cell]) -> Closed | None:
        """Take in the next message of the stream; the window before it where that is over."""
        second = time_ms // 1000
        begins = second - second % self.seconds
        closed = None
        if self._begins_s is None:
            self._begins_s = begins
        elif begins > self._begins_s:  # a clock that was set back reopens nothing
            closed = Closed(self._begins_s, self._tests)
            self._begins_s, self._tests = begins, {}
        for cell in cells:
            if cell.done or cell.outcomes:
                self._tests.setdefault(cell.test, {}).setdefault(cell.variant, Sums()).add(cell)
        return closed


def metric_window(
    test_id: str, closed: Closed, seconds: int, models: tuple[str, str], least: int = 1
) -> MetricWindow:
    """What integrations are told of one test in a window that is over.

    ``models`` are those of A and B; of a variant with fewer than ``least`` requests counts alone are told.
    """
    begins_ms = closed.begins_s * 1000
    ends_ms = begins_ms + seconds * 1000
    return MetricWindow(
        event_id=f"{test_id}.window.{seconds}.{closed.begins_s}", test_id=test_id, model_a=models[0], model_b=models[1],
        at_ms=ends_ms, begins_ms=begins_ms, ends_ms=ends_ms,
        variants={name: sums.figures(least) for name, sums in sorted(closed.tests[test_id].items())},
    )  # fmt: skip
