"""Sends one message, for an alert or for several, and notes that before and after.

Who dies in between leaves that one message in doubt. It is sent again under the same id, with the same alerts.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from schemas.v1.alerts import Alert
from services._runtime.bus import TRANSIENT
from services._runtime.telemetry import get_logger
from services.alerts.domain.digest import digest, group_id
from services.alerts.domain.outcome import Outcome, Sent
from services.alerts.domain.record import GroupRecord
from services.alerts.ports import Destination, Ledger

log = get_logger(__name__)

_REMEMBERED = 1000


@dataclass(frozen=True)
class Piece:
    """One alert of a message.

    ``note`` is called with the message's id before it is sent. ``doubt`` is the message that this alert was being sent
    with when its sender died; empty where none did.
    """

    alert: Alert
    event_id: str
    note: Callable[[str], Awaitable[None]]
    doubt: str = ""

    @property
    def in_group(self) -> bool:
        """Whether it was being sent together with others."""
        return self.doubt not in {"", self.event_id}


class Sender:
    """For one destination."""

    def __init__(self, destination: Destination, ledger: Ledger) -> None:
        self._destination = destination
        self._ledger = ledger
        self._gone: OrderedDict[str, None] = OrderedDict()

    async def send(self, pieces: list[Piece]) -> Outcome:
        """One attempt. All pieces are in doubt with the same message, or none is. Raises NATS errors."""
        if len(pieces) == 1 and not pieces[0].in_group:
            only = pieces[0]
            await only.note(only.event_id)
            return await self._destination.deliver(only.alert, only.event_id, repeat=bool(only.doubt))
        return await self._group(pieces)

    async def has_gone(self, message_id: str) -> bool:
        """Whether the message of a group has arrived. Raises NATS errors."""
        if message_id in self._gone:
            return True
        group = await self._ledger.group(self._destination.name, message_id)
        return group is not None and group.sent

    async def _group(self, pieces: list[Piece]) -> Outcome:
        name, message_id = self._destination.name, pieces[0].doubt
        group = await self._ledger.group(name, message_id) if message_id else None
        if message_id in self._gone or (group is not None and group.sent):
            return Sent()
        if group is None:
            message_id = message_id or group_id([piece.event_id for piece in pieces])
            group = GroupRecord(message_id=message_id, alert=digest([piece.alert for piece in pieces]))
            await self._ledger.note_group(name, group)
        await asyncio.gather(*(piece.note(message_id) for piece in pieces))
        outcome = await self._destination.deliver(group.alert, message_id, repeat=bool(pieces[0].doubt))
        if isinstance(outcome, Sent):
            self._gone[message_id] = None
            if len(self._gone) > _REMEMBERED:
                self._gone.popitem(last=False)
            try:
                await self._ledger.note_group(name, group.model_copy(update={"sent": True}))
            except TRANSIENT as exc:  # each alert's own note follows, and is made until it is there
                log.warning("group_not_noted", destination=name, message_id=message_id, error=repr(exc))
        return outcome
