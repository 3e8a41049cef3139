"""From raw bytes to a handler and back, the same for HTTP and the bus: key, limit, role, parameters, audit."""

import asyncio
import hashlib
import hmac
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Counter
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from schemas.v1.alerts import AuditRecord
from services._runtime.clock import monotonic, now_ms
from services._runtime.telemetry import get_logger
from services.router.adapters.nats_audit import AuditLog
from services.router.control.audited import bounded
from services.router.control.base import JSON, Done
from services.router.control.explain import explained
from services.router.control.verbs import VERBS, Verb
from services.router.domain.auth import Principal, Role, require, still_good
from services.router.domain.door import Door
from services.router.domain.ratelimit import Limits, RateLimiter
from services.router.domain.refusals import BadRequest, Refused, TooMany, Unprocessable, error_body

log = get_logger(__name__)

Handler = Callable[[Principal, Any], Awaitable[Done]]

BUS = "bus"
KEY_USE = "key-use"
"""Action of the record of an operator's or admin's key that this process sees from an address for the first time."""
KEY_GUESSING = "key-guessing"
"""Action of the record of an address from which too many wrong keys have come."""
_MAX_PLACES = 10_000
_AUDITED_BODY = 64 << 10
AUDITED_S = 2.0
"""How long the answer to a command that was carried out waits for its audit record to be in the stream."""
_NOT_AUDITED = Counter(
    "cypria_audit_skipped_total", "Calls without a good key that came too fast to be audited"
)


@dataclass(frozen=True, slots=True)
class Call:
    """One call as it came in. ``peer`` is the caller's address, or 'bus'; it is only ever kept as a salted hash."""

    authorization: str | None
    request_id: str
    peer: str
    body: bytes = b""
    query: Mapping[str, str] = field(default_factory=dict)
    path: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """Status, body (JSON unless ``media`` says otherwise) and headers beyond the usual."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    media: str = JSON


class Dispatcher:
    """Checks a call, carries it out and writes it to the audit log."""

    def __init__(
        self, handlers: Sequence[object], door: Door, limits: Limits, audit: AuditLog, source_salt: bytes
    ) -> None:
        self._handlers: dict[str, Handler] = {
            verb.name: next(getattr(some, verb.handler) for some in handlers if hasattr(some, verb.handler))
            for verb in VERBS
        }
        self._door = door
        self._limits = limits
        self._audit = audit
        self._salt = source_salt
        self._anonymous = RateLimiter(per_minute=60, burst=60)
        self._places: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def dispatch(self, verb: Verb, call: Call) -> Reply:
        """Carry out a verb. Never raises: what goes wrong is in the reply."""
        began = monotonic()
        who: Principal | None = None
        done = Done(None)
        try:
            who = self._admit(verb, call)
            require(who, verb.role)
            params = parse(verb.takes, call)
            done = await self._handlers[verb.name](who, params)
            reply = Reply(200, _encode(done.body), done.headers, done.media)
            outcome = "ok"
        except Refused as exc:
            reply, outcome, done = refusal(exc), exc.code, Done(None, before=exc.before)
        except Exception:
            log.exception("control_failed", verb=verb.name, request_id=call.request_id)
            body = error_body(
                f"something went wrong inside; the log has it under request id {call.request_id}",
                "server_error", None, "internal_error",
            )  # fmt: skip
            reply, outcome = Reply(500, json.dumps(body).encode()), "internal_error"
        log.debug("control", verb=verb.name, actor=who.name if who else None, status=reply.status, outcome=outcome,
                  request_id=call.request_id, ms=round(1000 * (monotonic() - began), 1))  # fmt: skip
        if verb.changes or reply.status in {401, 403}:
            stored = self._record(verb, call, who, reply.status, outcome, done)
            if reply.status == 200 and stored is not None:
                # What is confirmed is on record, even if this router is killed in the next moment.
                await asyncio.wait({stored}, timeout=AUDITED_S)
        return reply

    def refuse(self, verb: Verb, call: Call, exc: Refused) -> Reply:
        """The reply to a call whose body could not be taken in."""
        who = self._door.knows(call.authorization, call.peer, monotonic())
        if verb.changes:
            self._record(verb, call, who, exc.status, exc.code, Done(None))
        return refusal(exc)

    def knows(self, authorization: str | None, peer: str) -> bool:
        """Whether this is somebody's key, and may be told from there."""
        return self._door.knows(authorization, peer, monotonic()) is not None

    def admit(self, verb: Verb, call: Call) -> Principal:
        """Key, limit and role alone, for verbs whose reply is a stream; refusals are audited. Raises Refused."""
        who: Principal | None = None
        try:
            who = self._admit(verb, call)
            require(who, verb.role)
        except Refused as exc:
            self._record(verb, call, who, exc.status, exc.code, Done(None))
            raise
        return who

    def guessed(self, peer: str) -> None:
        """Too many wrong keys came from an address, to this API or with requests to models: audited where it begins."""
        if self._anonymous.take(KEY_GUESSING, monotonic()) is not None:
            _NOT_AUDITED.inc()
            return
        self._audit.record(
            AuditRecord(
                at_ms=now_ms(), actor="anonymous", role="none", action=KEY_GUESSING, source=self._source(peer),
                status=429, outcome="too_many_failed_keys", request_id="",
            )
        )  # fmt: skip

    def still_good(self, call: Call) -> Callable[[], bool]:
        """A question to be asked again and again: is the key of an admitted call still good?"""
        return still_good(self._door.ring, call.authorization)

    def _admit(self, verb: Verb, call: Call) -> Principal:
        now = monotonic()
        who = self._door.enter(call.authorization, call.peer, now)
        self._note_place(verb, call, who)
        limiter, what = (
            (self._limits.feedback, "feedback") if verb.of_clients else (self._limits.control, "control requests")
        )
        wait = limiter.take(who.name, now)
        if wait is not None:
            raise TooMany(f"key '{who.name}' is over its limit of {what}: wait {wait} s", retry_after_s=wait)
        return who

    def _note_place(self, verb: Verb, call: Call, who: Principal) -> None:
        """Questions are not audited, and a key that somebody has got hold of asks first: its first use is."""
        if who.role < Role.OPERATOR:
            return
        place = (who.name, self._source(call.peer))
        known = place in self._places
        self._places[place] = None
        self._places.move_to_end(place)
        if known:
            return
        if len(self._places) > _MAX_PLACES:
            self._places.popitem(last=False)
        self._audit.record(
            AuditRecord(
                at_ms=now_ms(), actor=who.name, role=who.role.label, action=KEY_USE, target=verb.name, source=place[1],
                status=200, outcome="first_use", request_id=call.request_id, needs=verb.role.label,
            )
        )  # fmt: skip

    def _record(
        self, verb: Verb, call: Call, who: Principal | None, status: int, outcome: str, done: Done
    ) -> asyncio.Future[bool] | None:
        """The future of `AuditLog.record`; None where the call is not audited."""
        source = self._source(call.peer)
        # Whoever has no key must not be able to push everybody else's records out of the stream.
        if who is None and self._anonymous.take(source, monotonic()) is not None:
            _NOT_AUDITED.inc()
            return None
        return self._audit.record(
            AuditRecord(
                at_ms=now_ms(),
                actor=who.name if who else "anonymous",
                role=who.role.label if who else "none",
                action=verb.name,
                target=done.target or _named(call, "name"),
                test_id=done.test_id or _named(call, "test_id"),
                source=source,
                status=status,
                outcome=outcome,
                request_id=call.request_id,
                before=bounded(done.before),
                after=bounded(done.after),
                needs=verb.role.label,
                changes=verb.changes,
            )
        )

    def _source(self, peer: str) -> str:
        if peer == BUS:
            return BUS
        return hmac.new(self._salt, peer.encode(), hashlib.sha256).hexdigest()[:16]


def parse(model: type[BaseModel], call: Call) -> Any:
    """Path, query and body as one set of parameters.

    Raises BadRequest for a body that is not a JSON object and Unprocessable naming the field that does not fit.
    Bodies are taken strictly (a number in quotes is no number), query strings as what they spell.
    """
    fields = _body(call.body)
    loose = {**call.query, **call.path}
    doubled = next((name for name in loose if name in fields and str(fields[name]) != loose[name]), None)
    if doubled is not None:
        raise Unprocessable(f"{doubled} is given twice with different values: give it once", param=doubled)
    try:
        if fields:
            rest = {
                name: value
                for name, value in loose.items()
                if name in model.model_fields and name not in fields
            }
            if rest:
                fields |= _spelt(model, rest)
            return model.model_validate_json(json.dumps(fields), strict=True)
        return model.model_validate(loose)
    except ValidationError as exc:
        raise explained(exc, model) from None


def _spelt(model: type[BaseModel], rest: Mapping[str, str]) -> dict[str, Any]:
    """Values of query strings as what they spell, by the type of their field; the others stay text."""
    spelt: dict[str, Any] = {}
    for name, text in rest.items():
        spelt[name] = text
        if "str" not in str(model.model_fields[name].annotation):
            try:
                spelt[name] = json.loads(text)
            except (ValueError, RecursionError):
                continue
    return spelt


def _body(raw: bytes) -> dict[str, Any]:
    if not raw.strip():
        return {}
    try:
        value = from_json(raw, allow_inf_nan=False)
    except ValueError as exc:
        raise BadRequest(
            f"the body is not valid JSON ({exc}): send a JSON object", code="invalid_json"
        ) from None
    if not isinstance(value, dict):
        raise BadRequest(f"the body is a JSON {_kind(value)}: send a JSON object", code="invalid_json")
    return value


def _kind(value: Any) -> str:
    return {list: "array", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")


def _named(call: Call, name: str) -> str | None:
    """A name for the audit, also when the call was refused before its parameters were read."""
    value: Any = call.path.get(name) or call.query.get(name)
    if value is None and len(call.body) <= _AUDITED_BODY:
        try:
            body = from_json(call.body) if call.body.strip() else {}
        except ValueError:
            return None
        value = body.get(name) if isinstance(body, dict) else None
    return value[:128] if isinstance(value, str) else None


def refusal(exc: Refused) -> Reply:
    """A refusal as a reply."""
    return Reply(exc.status, json.dumps(exc.body()).encode(), exc.headers())


def _encode(body: Any) -> bytes:
    if isinstance(body, bytes):
        return body
    if isinstance(body, BaseModel):
        return body.model_dump_json().encode()
    return json.dumps(body).encode()
