"""What of the calls goes into the audit, and until when an answer waits for its record.

What was answered is on record, even if this router is killed in the next moment. So that a flood of refusals can
neither push other records out, nor fill the memory, nor hold up others, refusals have bounds: over them they are
counted, and one record a second at most says how many there were.
"""

import asyncio
import hashlib
import hmac
from collections import OrderedDict

from prometheus_client import Counter
from pydantic_core import from_json

from schemas.v1.alerts import AuditRecord
from services._runtime.clock import monotonic, now_ms
from services._runtime.tasks import end
from services.router.adapters.nats_audit import AuditLog
from services.router.control.audited import bounded
from services.router.control.base import BUS, Call, Done
from services.router.control.verbs import Verb
from services.router.domain.auth import Principal, Role
from services.router.domain.door import network
from services.router.domain.further import Further
from services.router.domain.ratelimit import RateLimiter

KEY_USE = "key-use"
"""Action of the record of an operator's or admin's key that this process sees from an address for the first time; of
other keys only where that is set."""
MODEL = "inference"
"""Target of such a record where it came with a request to a model."""
KEY_GUESSING = "key-guessing"
"""Action of the record of an address from which too many wrong keys have come."""
FURTHER_REFUSALS = "further-refusals"
"""Action of a record that stands for refusals without a record of their own."""
AUDITED_S = 2.0
"""How long an answer waits for its audit record to be in the stream."""
MAX_UNSTORED = 500
"""Refusals that may wait for the bus with a record of their own."""
_MAX_WAITING_ON_BUS = 32
"""Half of the calls that a router takes from the bus at once: refusals must leave room for commands."""
_TELL_S = 1.0
_MAX_PLACES = 10_000
_AUDITED_BODY = 64 << 10
_NOT_AUDITED = Counter(
    "cypria_router_audit_skipped_total", "Refused calls that came too fast for a record each, and are counted in one"
)


class Recorder:
    """Makes records of calls. ``source_salt``: under it addresses are hashed.

    ``clients``: the first use of keys of lesser roles from an address is on record, too.
    """

    def __init__(self, audit: AuditLog, source_salt: bytes, *, clients: bool = False) -> None:
        self._audit = audit
        self._salt = source_salt
        self._clients = clients
        self._limit = RateLimiter(per_minute=60, burst=60)
        self._places: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._unstored = 0
        self._waiting_on_bus = 0
        self._further = Further()
        self._telling: asyncio.Task[None] | None = None

    async def stop(self) -> None:
        """Take what was counted into a record; before the audit log stops."""
        await end(self._telling)
        self._tell()

    async def carried_out(self, verb: Verb, call: Call, who: Principal, done: Done) -> None:
        """A command that changed something; returns when its record is in the stream, or after AUDITED_S."""
        stored = self._audit.record(self._record(verb, call, who, 200, "ok", done))
        await asyncio.wait({stored}, timeout=AUDITED_S)

    async def refused(
        self, verb: Verb, call: Call, who: Principal | None, status: int, outcome: str, done: Done
    ) -> None:
        """A call that was refused; returns when its record is in the stream, or after AUDITED_S.

        At once where it is counted, or where too many wait already on the bus.
        """
        # Whoever has no key, or sends more than a key may, must not push other records out of the stream.
        limited = self._source(network(call.peer)) if who is None else f"key {who.name}" if status == 429 else None
        too_fast = limited is not None and self._limit.take(limited, monotonic()) is not None
        if too_fast or self._unstored >= MAX_UNSTORED:
            self._count(status, call.peer)
            return
        stored = self._audit.record(self._record(verb, call, who, status, outcome, done))
        self._unstored += 1
        stored.add_done_callback(self._one_less)
        if call.peer != BUS:
            await asyncio.wait({stored}, timeout=AUDITED_S)
        elif self._waiting_on_bus < _MAX_WAITING_ON_BUS:
            self._waiting_on_bus += 1
            try:
                await asyncio.wait({stored}, timeout=AUDITED_S)
            finally:
                self._waiting_on_bus -= 1

    def guessed(self, peer: str) -> None:
        """Too many wrong keys came from an address, to this API or with requests to models: audited where it begins."""
        if self._limit.take(KEY_GUESSING, monotonic()) is not None:
            self._count(429, peer)
            return
        self._audit.record(
            AuditRecord(
                at_ms=now_ms(), actor="anonymous", role="none", action=KEY_GUESSING, source=self._source(peer),
                status=429, outcome="too_many_failed_keys", request_id="",
            )
        )  # fmt: skip

    def note_place(self, verb: Verb, call: Call, who: Principal) -> None:
        """Questions are not audited, and a key that somebody has got hold of asks first: its first use is."""
        self._used(who, call.peer, verb.name, call.request_id, verb.role)

    def used_model(self, who: Principal, peer: str) -> None:
        """A key comes from an address for the first time, with a request to a model."""
        self._used(who, peer, MODEL, "", Role.CLIENT)

    def _used(self, who: Principal, peer: str, target: str, request_id: str, needs: Role) -> None:
        if who.role < Role.OPERATOR and not self._clients:
            return
        place = (who.name, self._source(peer))
        known = place in self._places
        self._places[place] = None
        self._places.move_to_end(place)
        if known:
            return
        if len(self._places) > _MAX_PLACES:
            self._places.popitem(last=False)
        # Applications may come from very many addresses: they must not push other records out of the stream.
        if who.role < Role.OPERATOR and self._limit.take(f"places {who.name}", monotonic()) is not None:
            return
        self._audit.record(
            AuditRecord(
                at_ms=now_ms(), actor=who.name, role=who.role.label, action=KEY_USE, target=target, source=place[1],
                status=200, outcome="first_use", request_id=request_id, needs=needs.label,
            )
        )  # fmt: skip

    def _one_less(self, _stored: "asyncio.Future[bool]") -> None:
        self._unstored -= 1

    def _count(self, status: int, peer: str) -> None:
        _NOT_AUDITED.inc()
        self._further.add(status, self._source(peer))
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell_on(), name="further-refusals")

    async def _tell_on(self) -> None:
        """One record a second while there is something to tell, and none before the last one is in the stream."""
        while self._further:
            await asyncio.sleep(_TELL_S)
            if (stored := self._tell()) is not None:
                await stored

    def _tell(self) -> "asyncio.Future[bool] | None":
        told, self._further = self._further, Further()
        if not told:
            return None
        return self._audit.record(
            AuditRecord(
                at_ms=now_ms(), actor="anonymous", role="none", action=FURTHER_REFUSALS, source=told.source, status=429,
                outcome="counted", request_id="", after=told.shown(),
            )
        )  # fmt: skip

    def _record(
        self, verb: Verb, call: Call, who: Principal | None, status: int, outcome: str, done: Done
    ) -> AuditRecord:
        return AuditRecord(
            at_ms=now_ms(),
            actor=who.name if who else "anonymous",
            role=who.role.label if who else "none",
            action=verb.name,
            target=done.target or _named(call, "name"),
            test_id=done.test_id or _named(call, "test_id"),
            source=self._source(call.peer),
            status=status,
            outcome=outcome,
            request_id=call.request_id,
            before=bounded(done.before),
            after=bounded(done.after),
            needs=verb.role.label,
            changes=verb.changes,
        )

    def _source(self, peer: str) -> str:
        if peer == BUS:
            return BUS
        return hmac.new(self._salt, peer.encode(), hashlib.sha256).hexdigest()[:16]


def _named(call: Call, name: str) -> str | None:
    """A name for the audit, also when the call was refused before its parameters were read."""
    value = call.path.get(name) or call.query.get(name)
    if value is None and len(call.body) <= _AUDITED_BODY:
        try:
            body = from_json(call.body) if call.body.strip() else {}
        except ValueError:
            return None
        value = body.get(name) if isinstance(body, dict) else None
    return value[:128] if isinstance(value, str) else None
