"""Feedback into the sums of an open cell."""

from collections.abc import Callable
from enum import IntEnum

from schemas import feedback as names
from services.metrics.domain.cells import BUCKET_SHIFT, OpenCell
from services.metrics.domain.records import Bucket


class Kind(IntEnum):
    """What a value of feedback is about; DOWN tells a unit's first thumbs-down from its first thumb."""

    THUMBS = 0
    CONVERSION = 1
    SCORE = 2
    DOWN = 3


def hear(cell: OpenCell, kind: Kind, value: int, unit: int, first: Callable[[Kind], bool]) -> None:
    """Add a value: 1 or 0 for thumbs and conversions, 10**-6 for scores.

    ``first`` says whether the unit had nothing of a kind before, in the whole test, and notes that it has now.
    """
    if kind is Kind.SCORE:
        _add(cell, names.SCORE_N, 1)
        _add(cell, names.SCORE_MICRO, value)
        _add(cell, names.SCORE_SQUARES, (value * value + names.MICRO // 2) // names.MICRO)
    elif kind is Kind.THUMBS:
        _add(cell, names.THUMBS_UP if value else names.THUMBS_DOWN, 1)
        if not value and first(Kind.DOWN):
            _add(cell, names.UNITS_DOWN, 1)
    else:
        _add(cell, names.CONVERTED if value else names.NOT_CONVERTED, 1)
    if first(kind):
        _count(cell.opinions.setdefault(unit >> BUCKET_SHIFT, Bucket()), kind, value)


def _add(cell: OpenCell, name: str, amount: int) -> None:
    cell.feedback[name] = cell.feedback.get(name, 0) + amount


def _count(bucket: Bucket, kind: Kind, value: int) -> None:
    if kind is Kind.THUMBS:
        bucket.thumbs_n += 1
        bucket.thumbs_up += value
    elif kind is Kind.CONVERSION:
        bucket.conversion_n += 1
        bucket.conversions += value
    else:
        bucket.score_n += 1
        bucket.score_micro += value
