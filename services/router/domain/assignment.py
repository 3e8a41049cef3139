"""Which variant a request gets: units, hash slots and unit hashes. Pure: the same input, the same answer."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence

from schemas.subjects import PARTITIONS
from schemas.v1.experiment import SLOTS

MAX_KEY = 64
"""Longest key that BLAKE2b takes."""


def _key(salt: bytes) -> bytes:
    return salt if len(salt) <= MAX_KEY else hashlib.blake2b(salt).digest()


def unit_of(order: Sequence[str], values: Mapping[str, bytes]) -> bytes | None:
    """The first non-empty value in the configured order; None: the request has no unit but itself.

    ``order`` are names of `assignment.unit`; ``values`` holds what the request brought under those names.
    """
    for source in order:
        value = values.get(source)
        if value:
            return value
    return None


def slot_of(salt: bytes, unit: bytes) -> int:
    """The unit's slot, 0 to 9,999, in the test of that salt: keyed BLAKE2b, 64 bits, modulo 10,000.

    The bias of the modulo is below 6e-16. Another salt is another keyed hash, so tests assign independently.
    """
    digest = hashlib.blake2b(unit, digest_size=8, key=_key(salt)).digest()
    return int.from_bytes(digest, "big") % SLOTS


def unit_hash(unit_salt: bytes, unit: bytes) -> int:
    """64-bit keyed hash of a unit, the only form in which it is ever stored or sent.

    ``person`` keeps it apart from `slot_of` even if both salts were the same.
    """
    digest = hashlib.blake2b(unit, digest_size=8, key=_key(unit_salt), person=b"cypria-unit").digest()
    return int.from_bytes(digest, "big")


class UnitHasher:
    """`unit_hash` under one key for many units: the key is taken in once, half of the work for a short unit."""

    __slots__ = ("_keyed",)

    def __init__(self, unit_salt: bytes) -> None:
        self._keyed = hashlib.blake2b(digest_size=8, key=_key(unit_salt), person=b"cypria-unit")

    def __call__(self, unit: bytes) -> int:
        """The 64-bit hash of a unit."""
        hasher = self._keyed.copy()
        hasher.update(unit)
        return int.from_bytes(hasher.digest(), "big")


def partition_of(unit: int) -> int:
    """The METRICS partition of a unit hash."""
    return unit % PARTITIONS


class SlotTable:
    """B's slots of one version of one test, ready for a look-up by bisection.

    ``ranges`` are half-open, in any order, and do not overlap. Raises ValueError when they do, or leave 0..10,000.
    """

    __slots__ = ("_edges", "_keyed")

    def __init__(self, salt: bytes, ranges: Iterable[tuple[int, int]]) -> None:
        self._keyed = hashlib.blake2b(digest_size=8, key=_key(salt))
        edges: list[int] = []
        for start, end in sorted(ranges):
            if not (edges[-1] if edges else 0) <= start < end <= SLOTS:
                raise ValueError(f"slot range {start}..{end} is empty, overlaps another or leaves 0..{SLOTS}")
            edges += (start, end)
        self._edges = edges

    def is_b(self, unit: bytes) -> bool:
        """Whether a unit belongs to variant B."""
        if not self._edges:
            return False
        hasher = self._keyed.copy()
        hasher.update(unit)
        # An odd number of edges at or below the slot: inside a range.
        return bisect_right(self._edges, int.from_bytes(hasher.digest(), "big") % SLOTS) & 1 == 1
