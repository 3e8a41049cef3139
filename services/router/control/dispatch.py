"""From raw bytes to a handler and back, the same for HTTP and the bus: key, limit, role, parameters, audit."""

import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from services._runtime.clock import monotonic
from services._runtime.telemetry import get_logger
from services.router.control.base import JSON, Call, Done
from services.router.control.explain import explained
from services.router.control.recorder import Recorder
from services.router.control.verbs import VERBS, Verb
from services.router.domain.auth import Principal, require, still_good
from services.router.domain.door import Door
from services.router.domain.json_words import why_no_json
from services.router.domain.ratelimit import Limits
from services.router.domain.refusals import BadRequest, Refused, TooMany, Unprocessable, error_body

log = get_logger(__name__)

_LOOKED_THROUGH = 1 << 20
"""Bytes of a body that is looked through for names that are given twice: the loop serves others meanwhile."""

Handler = Callable[[Principal, Any], Awaitable[Done]]


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
        self, handlers: Sequence[object], door: Door, limits: Limits, recorder: Recorder
    ) -> None:
        self._handlers: dict[str, Handler] = {
            verb.name: next(getattr(some, verb.handler) for some in handlers if hasattr(some, verb.handler))
            for verb in VERBS
        }
        self._door = door
        self._limits = limits
        self._recorder = recorder

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
        if reply.status != 200 and (verb.changes or reply.status in {401, 403}):
            await self._recorder.refused(verb, call, who, reply.status, outcome, done)
        elif verb.changes and who is not None:
            await self._recorder.carried_out(verb, call, who, done)
        return reply

    async def refuse(self, verb: Verb, call: Call, exc: Refused) -> Reply:
        """The reply to a call whose body could not be taken in."""
        who = self._door.knows(call.authorization, call.peer, monotonic())
        if verb.changes:
            await self._recorder.refused(verb, call, who, exc.status, exc.code, Done(None))
        return refusal(exc)

    def knows(self, authorization: str | None, peer: str) -> bool:
        """Whether this is somebody's key, and may be told from there."""
        return self._door.knows(authorization, peer, monotonic()) is not None

    async def admit(self, verb: Verb, call: Call) -> Principal:
        """Key, limit and role alone, for verbs whose reply is a stream; refusals are audited. Raises Refused."""
        who: Principal | None = None
        try:
            who = self._admit(verb, call)
            require(who, verb.role)
        except Refused as exc:
            await self._recorder.refused(verb, call, who, exc.status, exc.code, Done(None))
            raise
        return who

    def still_good(self, call: Call) -> Callable[[], bool]:
        """A question to be asked again and again: is the key of an admitted call still good?"""
        return still_good(self._door.ring, call.authorization)

    def _admit(self, verb: Verb, call: Call) -> Principal:
        now = monotonic()
        who = self._door.enter(call.authorization, call.peer, now)
        self._recorder.note_place(verb, call, who)
        if verb.of_clients:  # one for each answer, so that it has inference's limit where the key has one
            what, wait = "feedback", self._limits.feedback.take(who.name, now, who.requests_per_minute)
        else:
            what, wait = "control requests", self._limits.control.take(who.name, now, who.control_per_minute)
        if wait is not None:
            raise TooMany(f"key '{who.name}' is over its limit of {what}: wait {wait} s", retry_after_s=wait)
        return who


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
        raise BadRequest(f"the body is not valid JSON: {why_no_json(str(exc))}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise BadRequest(f"the body is a JSON {_kind(value)}: send a JSON object", code="invalid_json")
    if len(raw) <= _LOOKED_THROUGH:
        with contextlib.suppress(ValueError, RecursionError):  # that it is JSON is known
            json.loads(raw, object_pairs_hook=_once)
    return value


def _once(pairs: list[tuple[str, Any]]) -> None:
    """Readers differ in which of two they take. Raises BadRequest naming the field."""
    if len({name for name, _ in pairs}) < len(pairs):
        names = [name[:64] for name, _ in pairs]
        twice = next((name for name in names if names.count(name) > 1), names[0])
        raise BadRequest(f"'{twice}' is given twice in one object: give it once", param=twice, code="invalid_json")


def _kind(value: Any) -> str:
    return {list: "array", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")


def refusal(exc: Refused) -> Reply:
    """A refusal as a reply."""
    return Reply(exc.status, json.dumps(exc.body()).encode(), exc.headers())


def _encode(body: Any) -> bytes:
    if isinstance(body, bytes):
        return body
    if isinstance(body, BaseModel):
        return body.model_dump_json().encode()
    return json.dumps(body).encode()
