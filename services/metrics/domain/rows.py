"""Windows into rows of `window_cells`: sums by slot of the broker's time, all partitions together."""

from datetime import UTC, datetime
from typing import Any

from schemas.sketch import merge
from services.metrics.domain.records import Cell, Moments, Window

SLOT_S = 10
"""Length of a row's time slot in seconds."""

MOMENTS = ("latency", "ttft", "itl", "cost")
UNITS = ("new", "first_errors", "first_client_errors", "first_overdue", "new_test", "first_errors_test")
COUNTS = (
    "admitted", "done", "overdue", "overdue_done", "fallback", "prompt_tokens", "completion_tokens", "cached_tokens",
    "gpu_us",
)  # fmt: skip
MAPS = ("outcomes", "strata", "feedback")


def _moment_columns(name: str) -> tuple[str, ...]:
    unit = "cost_nano" if name == "cost" else f"{name}_us"
    return (f"{name}_n", unit, f"{unit}_squares", f"{name}_ln", f"{name}_ln_squares", f"{name}_bins")


COLUMNS: tuple[str, ...] = (
    "test", "slot", "variant", "share_bp", "epoch", "digest", *COUNTS, *MAPS,
    *(column for name in MOMENTS for column in _moment_columns(name)),
    *(f"units_{name}" for name in UNITS), "wm", "wm_time_ms", "messages",
)  # fmt: skip

_NO_MOMENTS: tuple[Any, ...] = (0, 0, 0, 0, 0, {})
Key = tuple[str, int, str, int, int, str]


def _add_moments(into: Moments, other: Moments) -> None:
    into.n += other.n
    into.total += other.total
    into.squares += other.squares
    into.ln += other.ln
    into.ln_squares += other.ln_squares
    merge(into.bins, other.bins)


def _add_cell(into: Cell, other: Cell) -> None:
    for name in COUNTS:
        setattr(into, name, getattr(into, name) + getattr(other, name))
    for name in MAPS:
        counts = getattr(into, name)
        for key, count in getattr(other, name).items():
            counts[key] = counts.get(key, 0) + count
    for name in MOMENTS:
        _add_moments(getattr(into, name), getattr(other, name))
    for name in UNITS:
        setattr(into.units, name, getattr(into.units, name) + getattr(other.units, name))


class Rows:
    """Sums of some windows, waiting to be inserted together with the position that they lead to."""

    def __init__(self) -> None:
        self.messages = 0
        self.last_seq = 0
        self.last_time_ms = 0
        self._cells: dict[Key, Cell] = {}

    @property
    def counts(self) -> bool:
        """Whether there is anything to count besides the position."""
        return bool(self._cells)

    def add(self, window: Window, sequence: int, time_ms: int) -> None:
        """Add a window (its WINDOWS sequence and broker time). The window's cells belong to this object afterwards."""
        self.skip(sequence, time_ms)
        slot = time_ms // 1000 // SLOT_S * SLOT_S
        for cell in window.cells:
            key = (cell.test, slot, cell.variant, cell.share_bp, cell.epoch, cell.digest)
            known = self._cells.get(key)
            if known is None:
                self._cells[key] = cell
            else:
                _add_cell(known, cell)

    def skip(self, sequence: int, time_ms: int) -> None:
        """Count a message, whether or not it had anything to add."""
        self.messages += 1
        self.last_seq, self.last_time_ms = sequence, time_ms

    def table(self, stream_created: str) -> list[list[Any]]:
        """Rows in the order of COLUMNS, the position row last."""
        rows = [_row(key, cell) for key, cell in sorted(self._cells.items())]
        rows.append(_position_row(stream_created, self.last_seq, self.last_time_ms, self.messages))
        return rows


def _row(key: Key, cell: Cell) -> list[Any]:
    test, slot, variant, share_bp, epoch, digest = key
    row: list[Any] = [test, datetime.fromtimestamp(slot, UTC), variant, share_bp, epoch, digest]
    row += [getattr(cell, name) for name in COUNTS]
    row += [{getattr(k, "value", k): v for k, v in getattr(cell, name).items()} for name in MAPS]
    for name in MOMENTS:
        m: Moments = getattr(cell, name)
        row += [m.n, m.total, m.squares, m.ln, m.ln_squares, m.bins]
    row += [getattr(cell.units, name) for name in UNITS]
    return [*row, 0, 0, 0]


def _position_row(stream_created: str, last_seq: int, last_time_ms: int, messages: int) -> list[Any]:
    """The row that says up to which WINDOWS sequence of which stream the sums go."""
    row: list[Any] = ["", datetime.fromtimestamp(0, UTC), "", 0, 0, stream_created]
    row += [0] * len(COUNTS) + [{} for _ in MAPS] + list(_NO_MOMENTS) * len(MOMENTS) + [0] * len(UNITS)
    return [*row, last_seq, last_time_ms, messages]
