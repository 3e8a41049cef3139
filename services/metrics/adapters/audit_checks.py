"""`cypria audit verify`: the chain computed anew from the table, page by page, and compared with AUDIT."""

import asyncio
import re
from collections.abc import Sequence
from typing import NamedTuple

from clickhouse_connect.driver.client import Client

from schemas import streams
from schemas.v1.query import AuditProblem, AuditVerification, AuditVerifyQuery
from services._runtime.bus import Bus
from services._runtime.clock import now_ms
from services._runtime.reader import SequenceReader, StreamMessage, life_of
from services.metrics.adapters.clickhouse import ClickHouse
from services.metrics.adapters.clickhouse_audit import AuditStore
from services.metrics.adapters.clickhouse_queries import InvalidQuestionError
from services.metrics.adapters.nats_audit import AuditArchive
from services.metrics.domain import chain
from services.metrics.domain.chain import Head, Link, Place, Problem, Walk, record_or_mark, stream_of

DAY_MS = 86_400_000
_SLACK_MS = 600_000
"""By so much the clocks of the engine, the broker and this process may differ about what has expired."""
_FETCH_S = 1.0
_FULL = 0.9
"""A stream that takes up so much of what it may has dropped its oldest records for the room."""
_PLACES = 10
_HEAD = re.compile(r"[0-9]{1,18}:[0-9a-f]{64}")


class _Step(NamedTuple):
    """What one page came to; ``links`` of one stream, after ``after`` and up to ``until``."""

    problem: Problem | None
    stream: str
    links: list[Link]
    after: int
    until: int
    complete: bool


class AuditChecks:
    """Answers `cypria.query.audit_verify`. It keeps nothing between two pages: the place is in the question."""

    def __init__(self, bus: Bus, engine: ClickHouse, archive: AuditArchive, retention_days: int) -> None:
        self._bus = bus
        self._engine = engine
        self._archive = archive
        self._store = AuditStore(engine)
        self._retention_ms = retention_days * DAY_MS

    def room(self) -> int:
        """Bytes that an answer may take."""
        return int(self._bus.nc.max_payload // 2)

    async def verify(self, question: AuditVerifyQuery) -> AuditVerification:
        """One page. Raises InvalidQuestionError, and what `page` raises."""
        try:
            place = Place.parse(question.cursor) if question.cursor else None
        except ValueError:
            raise InvalidQuestionError("cursor: give the one of the answer before, or none to begin") from None
        if question.head and not _HEAD.fullmatch(question.head):
            raise InvalidQuestionError("head: no head: give SEQUENCE:HASH as an earlier answer had it")
        reply, place = await self.page(place, question)
        reply.cursor = "" if reply.complete else str(place or "")
        return reply

    async def page(
        self, place: Place | None, question: AuditVerifyQuery
    ) -> tuple[AuditVerification, Place | None]:
        """The page after a place, whatever cursor the question has, and the place that it has come to.

        Raises one of AWAY, and NatsError.
        """
        walk = Walk(place, now_ms() - self._retention_ms + _SLACK_MS)
        known = (self._archive.stream, self._archive.head)
        reply = await self._engine.read(lambda client: self._outset(client, question, known, first=place is None))
        if reply.problem is not None:
            return reply, place
        step = await self._engine.read(lambda client: self._walk(client, walk, question.limit))
        reply.checked = len(step.links)
        problem = step.problem
        if problem is None and step.stream:
            reply.compared, problem, gone = await self._compare(step)
            reply.deleted = [_told(one) for one in chain.deleted(step.stream, gone)[:_PLACES]]
        if problem is not None:
            return _failed(reply, problem), place
        reply.complete = step.complete
        return reply, walk.place

    # in a reading thread ----------------------------------------------------------------------------------

    def _outset(
        self, client: Client, question: AuditVerifyQuery, known: tuple[str, Head], *, first: bool
    ) -> AuditVerification:
        """The head as it is now, and whether it can be what it was."""
        heads = self._store.heads(client)
        stream, head = next(reversed(heads.items()), ("", None))
        reply = AuditVerification(
            total=self._store.count(client) if first else 0, head=f"{head.sequence}:{head.hash}" if head else None
        )
        if problem := _lost_head(heads, known):
            return _failed(reply, problem)
        for stray in self._store.strays(client):
            return _failed(reply, Problem("tail_missing", stray, 0, 0, "the head of the chain is gone from the table"))
        if first and question.head and (problem := self._pinned(client, question.head, head, stream)):
            return _failed(reply, problem)
        return reply

    def _pinned(self, client: Client, pinned: str, head: Head | None, stream: str) -> Problem | None:
        number, _, hashed = pinned.partition(":")
        sequence = int(number)
        found = self._store.hashes(client, sequence)
        if hashed in found:
            return None
        if found:
            why = f"record {sequence} has another hash than the one that was written down: the chain was made anew"
        elif head is None or sequence > head.sequence:
            why = f"record {sequence}, which was written down, is beyond the end of the chain: its tail is gone"
        else:
            why = (
                f"record {sequence}, which was written down, is not there any more: it has expired (write down a newer "
                "head from time to time) or was removed"
            )
        return Problem("pinned", stream, sequence, sequence, why)

    def _walk(self, client: Client, walk: Walk, limit: int) -> _Step:
        """At most ``limit`` links of one stream: where one ends the page ends, and the next begins the next one."""
        heads = list(self._store.heads(client).items())
        for index, (stream, head) in enumerate(heads):
            at = walk.place
            if at is not None and at.stream > stream:
                continue
            after = at.sequence if at is not None and at.stream == stream else 0
            if at is not None and at.stream == stream and (at.sequence, at.hash) == (head.sequence, head.hash):
                continue
            links = self._store.page(client, stream, after, head.sequence, limit)
            problem = walk.steps(links)
            whole = len(links) < limit
            if problem is None and whole:
                problem = walk.end(stream, head)
            until = head.sequence if whole else links[-1].sequence
            return _Step(problem, stream, links, after, until, whole and index == len(heads) - 1)
        return _Step(None, "", [], 0, 0, complete=True)

    # with AUDIT -------------------------------------------------------------------------------------------

    async def _compare(self, step: _Step) -> tuple[int, Problem | None, list[int]]:
        """How many were compared, what does not fit, and what AUDIT lacks."""
        info = await self._bus.js.stream_info(streams.AUDIT.name)
        if life_of(info) != stream_of(step.stream):
            return 0, None, []
        links = {one.sequence: one for one in step.links}
        after, until = await self._places(step)
        reader = SequenceReader(self._bus, streams.AUDIT.name, after=max(after, int(info.state.first_seq) - 1))
        until = min(until, int(info.state.last_seq))
        kept_ms = now_ms() - self._retention_ms + _SLACK_MS
        held: set[int] = set()
        try:
            while reader.position < until:
                messages = await reader.fetch(256, _FETCH_S)
                if not messages:
                    if await reader.nothing_left():
                        break
                    raise TimeoutError
                mine = [message for message in messages if message.sequence <= until]
                problem = await asyncio.to_thread(_differs, step.stream, links, mine, kept_ms)
                if problem is not None:
                    return len(held), problem, []
                held.update(message.sequence for message in mine)
        finally:
            await reader.close()
        missing = [one for one in step.links if after < one.sequence <= until and one.sequence not in held]
        return len(held), None, await self._unexplained(missing) if missing else []

    async def _unexplained(self, missing: list[Link]) -> list[int]:
        """Those of records missing in AUDIT that its own bounds cannot have taken away: these take the oldest only."""
        info = await self._bus.js.stream_info(streams.AUDIT.name)
        full = int(info.state.bytes) > _FULL * int(info.config.max_bytes or 0) > 0
        oldest_ms = now_ms() - int(1000 * (info.config.max_age or 0)) + _SLACK_MS
        first = int(info.state.first_seq)
        return [one.sequence for one in missing if one.sequence > first or not (full or one.stored_ms <= oldest_ms)]

    async def _places(self, step: _Step) -> tuple[int, int]:
        """Between which sequences AUDIT holds what this life of the stream has in the table.

        Where the stream lost its end and went on, the next life has its places from there.
        """
        name, next_life = step.stream, chain.next_life(step.stream)
        mine, begins = await self._engine.read(
            lambda client: (self._store.begins(client, name), self._store.begins(client, next_life))
        )
        after = step.after if name == stream_of(name) else max(step.after, mine - 1)
        if begins:
            return after, min(step.until, begins - 1)
        return after, min(step.until, self._archive.begun[1]) if self._archive.begun[0] == next_life else step.until


def _lost_head(heads: dict[str, Head], known: tuple[str, Head]) -> Problem | None:
    """What this process has put into the table is there still: its head only ever moves on."""
    stream, mine = known
    now = heads.get(stream)
    if not stream or mine.sequence == 0 or (now is not None and now.sequence > mine.sequence):
        return None
    if now == mine:
        return None
    if now is not None and now.sequence == mine.sequence:
        return Problem("changed", stream, mine.sequence, mine.sequence,
                       f"the chain came to record {mine.sequence} with another hash than the table's head has: the "
                       "head was changed, or the chain was made anew")  # fmt: skip
    end = 0 if now is None else now.sequence
    return Problem("tail_missing", stream, end + 1, mine.sequence,
                   f"the chain came to record {mine.sequence}, and the table says that it ends at {end}: its end was "
                   "taken away or changed")  # fmt: skip


def _differs(stream: str, links: dict[int, Link], messages: Sequence[StreamMessage], kept_ms: int) -> Problem | None:
    for message in messages:
        one = links.get(message.sequence)
        if one is None:
            if message.time_ms <= kept_ms:
                continue
            return Problem("removed", stream, message.sequence, message.sequence,
                           f"record {message.sequence} is in AUDIT and was removed from the table")  # fmt: skip
        if one.stored_ms != message.time_ms or one.record != record_or_mark(message.data, message.time_ms):
            return Problem("differs", stream, message.sequence, message.sequence,
                           f"record {message.sequence} is not what AUDIT holds: it was changed in the table, with the "
                           "hashes behind it, or in the stream")  # fmt: skip
    return None


def _failed(reply: AuditVerification, problem: Problem) -> AuditVerification:
    reply.ok, reply.complete, reply.problem = False, True, _told(problem)
    return reply


def _told(problem: Problem) -> AuditProblem:
    return AuditProblem(
        kind=problem.kind, stream=problem.stream, first=problem.first, last=problem.last, message=problem.message
    )
