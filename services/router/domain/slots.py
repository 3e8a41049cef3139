"""Which of the 10,000 hash slots belong to an arm, as half-open ranges in the order in which they were taken.

The hash is uniform over slots, so any set of n slots is a share of n / 10,000 of the units: the order
matters only because the slots taken last are the first to be given back.
"""

from collections.abc import Iterable, Sequence

from schemas.v1.experiment import SLOTS

Range = tuple[int, int]


def size(ranges: Iterable[Range]) -> int:
    """How many slots the ranges hold."""
    return sum(end - start for start, end in ranges)


def resize(ranges: Sequence[Range], want: int, others: Iterable[Range] = ()) -> list[Range]:
    """The arm's ranges at exactly ``want`` slots, taken from or given back to the control arm.

    ``others`` are the slots of further arms, which are never touched. Growing keeps every slot the arm has;
    shrinking gives back the slots taken last. Raises ValueError when the control arm has too few to give.
    """
    if not 0 <= want <= SLOTS:
        raise ValueError(f"an arm holds 0 to {SLOTS} slots, not {want}")
    have = size(ranges)
    if want <= have:
        return _give_back(ranges, have - want)
    return _take(ranges, want - have, others)


def holds(ranges: Iterable[Range], slot: int) -> bool:
    """Whether a slot is in one of the ranges."""
    return any(start <= slot < end for start, end in ranges)


def _give_back(ranges: Sequence[Range], count: int) -> list[Range]:
    left = list(ranges)
    while count:
        start, end = left.pop()
        keep = max(0, end - start - count)
        count -= end - start - keep
        if keep:
            left.append((start, start + keep))
    return left


def _take(ranges: Sequence[Range], count: int, others: Iterable[Range]) -> list[Range]:
    taken = list(ranges)
    for start, end in _free([*ranges, *others]):
        part = min(count, end - start)
        # Joined with the range before it, the pair still shrinks from the end taken last.
        if taken and taken[-1][1] == start:
            taken[-1] = (taken[-1][0], start + part)
        else:
            taken.append((start, start + part))
        count -= part
        if not count:
            return taken
    raise ValueError(f"the control arm has {count} slots too few to give")


def _free(occupied: Iterable[Range]) -> list[Range]:
    free, cursor = [], 0
    for start, end in sorted(occupied):
        if start > cursor:
            free.append((cursor, start))
        cursor = max(cursor, end)
    if cursor < SLOTS:
        free.append((cursor, SLOTS))
    return free
