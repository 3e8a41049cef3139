"""Numbers of a window within what can be: no fault of their writer stops an evaluation or makes it not a number.

What is impossible (a negative count, more than there can be) is taken for the nearest possible; how many cells had such
numbers is counted where windows are taken in, and logged. Unit buckets are bounded where they are summed (`totals`).
"""

from typing import Any

from schemas.sketch import bin_index
from schemas.v1.windows import Cell, Moments, UnitEvidence

MAX_COUNT = 10**15
"""Also what metrics takes the largest time (in microseconds) and amount (in nano-dollars) for."""
MAX_SUM = 2**127
MAX_BIN = bin_index(MAX_COUNT)

_Record = Cell | UnitEvidence | Moments
_SUMS = frozenset({"total", "squares", "ln", "ln_squares"})
_APART = frozenset({"buckets", "share_bp", "epoch"})


def within(cell: Cell) -> Cell:
    """The cell itself where all its numbers are possible, else a copy in which they are."""
    parts: tuple[_Record, ...] = (cell, cell.units, cell.latency, cell.ttft, cell.itl, cell.cost)
    return cell if all(map(_possible, parts)) else _bounded(cell)


def _possible(record: _Record) -> bool:
    for name, value in record.__dict__.items():
        if isinstance(value, int):
            if not 0 <= value <= (MAX_SUM if name in _SUMS else MAX_COUNT):
                return False
        elif isinstance(value, dict) and value and name not in _APART:
            if min(value.values()) < 0 or max(value.values()) > MAX_COUNT:
                return False
            if name.endswith("bins") and (min(value) < 0 or max(value) > MAX_BIN):
                return False
    return True


def _bounded(record: Any) -> Any:
    fields = {name: _field(name, getattr(record, name)) for name in type(record).model_fields}
    return type(record).model_construct(**fields)


def _field(name: str, value: Any) -> Any:
    if name in _APART:
        return value
    if isinstance(value, int):
        return min(max(value, 0), MAX_SUM if name in _SUMS else MAX_COUNT)
    if isinstance(value, UnitEvidence | Moments):
        return _bounded(value)
    if not isinstance(value, dict):
        return value
    found: dict[Any, int] = {}
    for key, count in value.items():
        at = min(max(key, 0), MAX_BIN) if name.endswith("bins") else key
        found[at] = min(found.get(at, 0) + max(count, 0), MAX_COUNT)
    return found
