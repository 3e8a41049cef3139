"""The chain of audit records: each link holds the hash of the one before it and its own over that and its content.

Pure. Whoever changes, removes or inserts a record breaks the chain behind it, unless every later hash is made anew; and
then the hash of the last link, the head, is no longer the one that was written down elsewhere.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

from schemas.v1.alerts import AuditRecord
from services.metrics.domain.archive import LATEST_MS, envelope

GENESIS = "0" * 64
"""What stands for the hash before the first record of all."""
UNREADABLE = "unreadable"
"""Action of what stands in the chain for a message that is no audit record; its target is the message's SHA-256."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept of one audit record. ``before`` and ``after`` are JSON, empty for null."""

    event_id: str
    at_ms: int
    actor: str
    role: str
    action: str
    target: str
    test_id: str
    source: str
    status: int
    outcome: str
    request_id: str
    before: str
    after: str
    needs: str
    changes: bool


_LIFE = " #"


def next_life(stream: str) -> str:
    """What a stream is called in the chain from where it lost its end and went on with other messages in its place."""
    name, _, number = stream.partition(_LIFE)
    return f"{name}{_LIFE}{int(number or 1) + 1:06d}"


def stream_of(name: str) -> str:
    """The creation time of a stream, whatever life of it is meant."""
    return name.partition(_LIFE)[0]


RECORD = (
    "event_id", "at_ms", "actor", "role", "action", "target", "test_id", "source", "status", "outcome", "request_id",
    "before", "after", "needs", "changes",
)  # fmt: skip
"""The fields of a record in the order in which they are hashed: never another one, or every hash is another."""
values = attrgetter(*RECORD)
"""A record's values in that order."""


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain has come to: sequence, hash and broker time (Unix ms) of its last record."""

    sequence: int
    hash: str
    stored_ms: int


START = Head(0, GENESIS, 0)


@dataclass(frozen=True, slots=True)
class Link:
    """A record in its place: the stream, its sequence there, and the broker's time (Unix ms).

    The stream is named by its creation time, and its life where it has lost its end (`next_life`).
    ``previous_ms`` is the broker's time of the record before: it tells whether that one may have expired.
    """

    stream: str
    sequence: int
    stored_ms: int
    previous_ms: int
    previous: str
    record: Record
    hash: str

    @property
    def head(self) -> Head:
        """The chain as it ends here."""
        return Head(self.sequence, self.hash, self.stored_ms)

    @property
    def fits(self) -> bool:
        """Whether the hash is that of the content."""
        place = (self.stream, self.sequence, self.stored_ms, self.previous_ms)
        return self.hash == _hash(*place, self.previous, self.record)


def link(head: Head, stream: str, sequence: int, stored_ms: int, record: Record) -> Link:
    """The link that puts a record behind a head."""
    hashed = _hash(stream, sequence, stored_ms, head.stored_ms, head.hash, record)
    return Link(stream, sequence, stored_ms, head.stored_ms, head.hash, record, hashed)


def _hash(stream: str, sequence: int, stored_ms: int, previous_ms: int, previous: str, record: Record) -> str:
    # A list in the order of the fields, in ASCII: the same bytes for the same content, whatever reads the table.
    content = json.dumps([stream, sequence, stored_ms, previous_ms, *values(record)], separators=(",", ":"))
    return hashlib.sha256(f"{previous}\n{content}".encode()).hexdigest()


def record_of(data: bytes) -> Record:
    """The record in a message of AUDIT. Raises ValueError."""
    event_id, _, body = envelope(data)
    record = AuditRecord.model_validate(body)
    return Record(
        event_id=event_id, at_ms=min(record.at_ms, LATEST_MS), actor=record.actor, role=record.role,
        action=record.action, target=record.target or "", test_id=record.test_id or "", source=record.source,
        status=min(max(record.status, 0), 65_535), outcome=record.outcome, request_id=record.request_id,
        before=_text(record.before), after=_text(record.after), needs=record.needs, changes=record.changes,
    )  # fmt: skip


def unreadable(data: bytes, stored_ms: int) -> Record:
    """What stands in the chain for a message that is no audit record: it was there, and what it was can be proved."""
    return Record(
        event_id="", at_ms=min(stored_ms, LATEST_MS), actor="", role="", action=UNREADABLE,
        target=hashlib.sha256(data).hexdigest(), test_id="", source="", status=0, outcome=UNREADABLE, request_id="",
        before="", after="", needs="", changes=False,
    )  # fmt: skip


def record_or_mark(data: bytes, stored_ms: int) -> Record:
    """`record_of`, or `unreadable` where it raises."""
    try:
        return record_of(data)
    except ValueError:
        return unreadable(data, stored_ms)


def _text(shown: dict[str, object] | None) -> str:
    return "" if shown is None else json.dumps(shown, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Problem:
    """The first place that does not fit: ``kind`` and a sentence; ``first`` to ``last`` are sequences of ``stream``.

    Kinds: ``changed`` (a record is not what was chained), ``removed`` (records between two are gone), ``front_missing``
    and ``tail_missing`` (those before the first or after the last), ``never_taken_in`` (gone from AUDIT before they
    could be chained), ``differs`` (AUDIT holds something else), ``pinned`` (the head written down does not fit),
    ``deleted`` (gone from AUDIT alone).
    """

    kind: str
    stream: str
    first: int
    last: int
    message: str


@dataclass(frozen=True, slots=True)
class Place:
    """How far a walk has come: the last link that fits."""

    stream: str
    sequence: int
    hash: str

    def __str__(self) -> str:
        return f"{self.sequence}:{self.hash}:{self.stream}"

    @classmethod
    def parse(cls, text: str) -> "Place":
        """The reverse of str(). Raises ValueError."""
        sequence, hashed, stream = text.split(":", 2)
        return cls(stream, int(sequence), hashed)


class Walk:
    """Follows the links of all streams in order, from the beginning or from a place.

    What was stored before ``kept_ms`` (Unix ms) may have expired; where links are missing that must still be there, or
    one is not what was chained, `step` and `end` say so.
    """

    def __init__(self, place: Place | None, kept_ms: int) -> None:
        self.place = place
        self._kept_ms = kept_ms

    def steps(self, links: Iterable[Link]) -> Problem | None:
        """Take links one after the other; the first problem."""
        return next((problem for one in links if (problem := self.step(one)) is not None), None)

    def step(self, one: Link) -> Problem | None:
        """Take the next link of the table."""
        if not one.fits:
            return Problem("changed", one.stream, one.sequence, one.sequence,
                           f"record {one.sequence} is not what was chained: it was changed in the table")  # fmt: skip
        problem = self._joins(one)
        if problem is None:
            self.place = Place(one.stream, one.sequence, one.hash)
        return problem

    def end(self, stream: str, head: Head) -> Problem | None:
        """The table has no more links of this stream, and says that they end with this head."""
        at = self.place
        if at is not None and (at.stream, at.sequence, at.hash) == (stream, head.sequence, head.hash):
            return None
        first = at.sequence + 1 if at is not None and at.stream == stream else 1
        if first > head.sequence and at is not None:
            return Problem("changed", stream, head.sequence, head.sequence,
                           f"the head says that the chain ends at record {head.sequence} with another hash than that "
                           f"of record {at.sequence}: the head or the end of the table was changed")  # fmt: skip
        if head.stored_ms <= self._kept_ms:
            self.place = Place(stream, head.sequence, head.hash)
            return None
        return Problem("tail_missing", stream, first, head.sequence,
                       f"the end of the table is gone: {_records(first, head.sequence, 'was', 'were')} chained, and "
                       f"{'is' if first == head.sequence else 'are'} younger than the retention")  # fmt: skip

    def _joins(self, one: Link) -> Problem | None:
        at = self.place
        gap = _gap(at, one)
        if one.previous == (GENESIS if at is None else at.hash):
            if at is not None and gap is not None and one.stored_ms > self._kept_ms:
                return Problem("never_taken_in", one.stream, *gap,
                               f"{_records(*gap, 'was', 'were')} gone from AUDIT before being taken in: lost or "
                               "dropped by the stream, or removed from it")  # fmt: skip
            return None
        if at is not None and gap is None and at.stream == one.stream:
            return Problem("changed", one.stream, at.sequence, one.sequence,
                           f"record {one.sequence} was chained to another record {at.sequence}: one of the two was "
                           "changed and its hash made anew")  # fmt: skip
        if one.previous_ms <= self._kept_ms:
            return None  # what was before has expired
        first, last = gap or (max(1, one.sequence - 1), max(1, one.sequence - 1))
        if at is None:
            return Problem("front_missing", one.stream, first, last,
                           f"what came before record {one.sequence} is gone from the table and is younger than the "
                           "retention: it was removed, or privacy.retention_days was shorter until lately")  # fmt: skip
        text = f"{_records(first, last, 'was', 'were')} removed from the table"
        return Problem("removed", one.stream, first, last, text)


def _gap(at: Place | None, one: Link) -> tuple[int, int] | None:
    """Sequences between a place and a link; None where the link is the very next one."""
    before = 0
    if at is not None and stream_of(at.stream) == stream_of(one.stream):
        before = at.sequence if at.stream == one.stream else min(at.sequence, one.sequence - 1)
    return None if one.sequence == before + 1 else (before + 1, one.sequence - 1)


def _records(first: int, last: int, one: str, many: str) -> str:
    """Records by their sequences, with the verb that goes with so many."""
    return f"record {first} {one}" if first == last else f"records {first} to {last} {many}"


def deleted(stream: str, sequences: Iterable[int]) -> list[Problem]:
    """What is in the table and was deleted from AUDIT, rising sequences put together where they follow one another."""
    places: list[tuple[int, int]] = []
    for sequence in sequences:
        if places and places[-1][1] == sequence - 1:
            places[-1] = (places[-1][0], sequence)
        else:
            places.append((sequence, sequence))
    return [
        Problem("deleted", stream, first, last,
                f"{_records(first, last, 'was', 'were')} deleted from AUDIT by somebody; the table still has "
                f"{'it' if first == last else 'them'}, as chained")
        for first, last in places
    ]  # fmt: skip
