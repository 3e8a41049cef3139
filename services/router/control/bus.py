"""The control API on `cypria.control.<verb>`: one router of the queue group answers."""

import asyncio
import secrets
from typing import Any

from faststream.nats import NatsBroker, NatsMessage, NatsResponse

from schemas import subjects
from services._runtime.telemetry import get_logger
from services.router.control.base import BUS, Call
from services.router.control.dispatch import Dispatcher, Reply, refusal
from services.router.control.verbs import BY_TOKEN
from services.router.domain.refusals import NotFound, TooLarge
from services.router.domain.request import request_id as own_request_id

log = get_logger(__name__)

QUEUE = "routers"
STATUS_HEADER = "Cypria-Status"
_AT_ONCE = 64
"""A stop waits for its verdict for seconds and must not hold up what comes after it."""


def subscribe(broker: NatsBroker, dispatcher: Dispatcher, max_body: int) -> None:
    """Answer control requests on the bus.

    Request: JSON body, `Authorization: Bearer KEY` as a NATS header, `X-Request-ID` if wanted, a reply subject in the
    callers' inbox (`_INBOX.caller.`): what asks for an answer elsewhere is dropped. Reply: the JSON body of the HTTP
    API, its status in the header `Cypria-Status`, and `Retry-After` where HTTP has it. A body over ``max_body`` bytes
    is refused unread, as over HTTP.
    """

    @broker.subscriber(subjects.CONTROL, queue=QUEUE, max_workers=_AT_ONCE, decoder=_raw)
    async def control(body: bytes, msg: NatsMessage) -> NatsResponse:
        if msg.reply_to and not msg.reply_to.startswith(subjects.CALLER_INBOX):
            log.warning("bus_request_without_inbox", subject=_subject(msg))
            msg.reply_to = ""  # nothing is sent there, and nothing is done
            return NatsResponse(b"")
        headers = {name.lower(): value for name, value in (msg.headers or {}).items()}
        own = str(headers.get("x-request-id") or "").encode("utf-8", "surrogateescape")
        request_id = own_request_id(own) or f"req_{secrets.token_hex(12)}"
        reply = await _answer(dispatcher, _subject(msg).rsplit(".", 1)[-1], headers, request_id, body, max_body)
        extra = {name: value for name, value in reply.headers.items() if name == "Retry-After"}
        out = {
            STATUS_HEADER: str(reply.status),
            "X-Request-ID": request_id,
            "content-type": reply.media,
            **extra,
        }
        return NatsResponse(reply.body, headers=out)


async def _answer(
    dispatcher: Dispatcher, token: str, headers: dict[str, Any], request_id: str, body: bytes, max_body: int
) -> Reply:
    verb = BY_TOKEN.get(token.replace("_", "-"))
    if verb is None:
        known = ", ".join(sorted(BY_TOKEN))
        return refusal(
            NotFound(f"there is no control verb '{token[:64]}': use one of {known}", code="unknown_verb")
        )
    if len(body) > max_body and dispatcher.knows(headers.get("authorization"), BUS):
        bare = Call(authorization=headers.get("authorization"), request_id=request_id, peer=BUS)
        return await dispatcher.refuse(verb, bare, TooLarge(f"the body is over {max_body} bytes: send a smaller one"))
    call = Call(authorization=headers.get("authorization"), request_id=request_id, peer=BUS, body=body)
    # Shielded: a connection lost while the command runs must not leave it half done.
    return await asyncio.shield(asyncio.ensure_future(dispatcher.dispatch(verb, call)))


async def _raw(msg: NatsMessage) -> bytes:
    """Bodies are parsed by the dispatcher, so that bad JSON gets the same answer as over HTTP."""
    return msg.body


def _subject(msg: NatsMessage) -> str:
    raw: Any = msg.raw_message
    return str(raw.subject)
