"""KV bucket `monitor`: who leads a test (`lead.<test>`) and its last checkpoint (`state.<test>`).

Both change by compare-and-set only. The leader's record carries a counter that grows with every renewal; a replica
that has not seen it grow for a while, on its own monotonic clock, takes over.
"""

import json
import zlib
from dataclasses import dataclass
from typing import Any

from nats.errors import Error as NatsError
from nats.js.errors import APIError
from nats.js.errors import Error as JetStreamError
from pydantic import Field, ValidationError

from schemas import streams
from schemas.v1.common import Message
from services._runtime import bus as runtime
from services._runtime.bus import Bus
from services._runtime.clock import monotonic
from services._runtime.kv import KvMirror
from services._runtime.telemetry import get_logger

log = get_logger(__name__)

_LEAD = "lead."
_STATE = "state."
_FAILURES = (NatsError, APIError, JetStreamError, TimeoutError, OSError)


class Lead(Message):
    """Who leads a test; ``published`` are ids of alerts that were made known and of actions that were carried out."""

    holder: str
    counter: int = 0
    published: list[str] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An evaluator's state after all windows up to ``sequence`` of the stream created at ``created``."""

    created: str
    sequence: int
    state: dict[str, Any]
    order: dict[str, Any] | None = None
    action: dict[str, Any] | None = None

    def dump(self) -> bytes:
        """Compressed JSON."""
        body = {
            "created": self.created, "sequence": self.sequence, "state": self.state, "order": self.order,
            "action": self.action,
        }  # fmt: skip
        return zlib.compress(json.dumps(body, separators=(",", ":")).encode(), 3)

    @classmethod
    def load(cls, value: bytes) -> "Checkpoint":
        """Decode. Raises ValueError or zlib.error for anything else than `dump` made."""
        return cls(**json.loads(zlib.decompress(value)))


class StateStore:
    """This replica's view of the bucket, and its writes to it."""

    def __init__(self, bus: Bus, replica: str, takeover_s: float) -> None:
        self._bus = bus
        self._replica = replica
        self._takeover_s = takeover_s
        self._moved: dict[str, float] = {}
        self.mirror = KvMirror(bus, streams.MONITOR.name, self._on_change)
        self._kv: Any = None

    async def start(self) -> None:
        """Read the bucket and follow it."""
        await self.mirror.start()
        self._kv = await self._bus.js.key_value(streams.MONITOR.name)

    async def stop(self) -> None:
        """Stop following the bucket."""
        await self.mirror.stop()

    def _on_change(self, key: str, _value: bytes | None, _revision: int) -> None:
        if key.startswith(_LEAD):
            self._moved[key.removeprefix(_LEAD)] = monotonic()

    def lead(self, test_id: str) -> tuple[Lead | None, int]:
        """The leader's record as last seen, and its revision."""
        value, revision = self.mirror.entries.get(_LEAD + test_id, (None, 0))
        if value is None:
            return None, 0
        try:
            return Lead.model_validate_json(value), revision
        except ValidationError:
            log.error("lead_unreadable", test_id=test_id)
            return Lead(holder=""), revision

    async def claim(self, test_id: str, published: set[str]) -> Lead | None:
        """Renew or take the lead; the record written, or None when somebody else leads or the bus is away."""
        known, revision = self.lead(test_id)
        if known is not None and known.holder not in {self._replica, ""}:
            if monotonic() - self._moved.get(test_id, 0.0) < self._takeover_s:
                return None
            log.warning("leader_gone", test_id=test_id, holder=known.holder)
        return await self._write(test_id, known, revision, self._replica, published)

    async def release(self, test_id: str, published: set[str]) -> None:
        """Give the lead back, so that a successor need not wait."""
        known, revision = self.lead(test_id)
        if known is not None and known.holder == self._replica:
            await self._write(test_id, known, revision, "", published)

    async def _write(
        self, test_id: str, known: Lead | None, revision: int, holder: str, published: set[str]
    ) -> Lead | None:
        before = known or Lead(holder="")
        record = Lead(
            holder=holder, counter=before.counter + 1, published=sorted(published | set(before.published))
        )
        body, key = record.model_dump_json().encode(), _LEAD + test_id
        try:
            if revision:
                revision = await self._kv.update(key, body, last=revision)
            else:
                revision = await self._kv.create(key, body)
        except _FAILURES as exc:
            log.info("lead_not_written", test_id=test_id, error=repr(exc))
            return None
        self.mirror.apply_own(key, body, revision)
        return record

    def checkpoint(self, test_id: str) -> Checkpoint | None:
        """The last checkpoint of a test; an unreadable one is as good as none."""
        value, _ = self.mirror.entries.get(_STATE + test_id, (None, 0))
        if value is None:
            return None
        try:
            return Checkpoint.load(value)
        except (ValueError, TypeError, zlib.error) as exc:
            log.error("checkpoint_unreadable", test_id=test_id, error=repr(exc))
            return None

    async def save(self, test_id: str, checkpoint: Checkpoint) -> bool:
        """Store a checkpoint unless a later one of the same stream is there; whether it was stored."""
        body = checkpoint.dump()

        def change(present: bytes | None) -> bytes | None:
            if present is not None:
                try:
                    stored = Checkpoint.load(present)
                except (ValueError, TypeError, zlib.error):
                    return body
                if stored.created == checkpoint.created and stored.sequence > checkpoint.sequence:
                    return None
            return body

        try:
            stored, _ = await runtime.compare_and_set(self._kv, _STATE + test_id, change, patience_s=2)
        except _FAILURES as exc:
            log.warning("checkpoint_failed", test_id=test_id, error=repr(exc))
            return False
        return stored == body

    def abandoned(self, live: set[str], after_s: float) -> list[str]:
        """Tests in the bucket that do not run any more and that nobody has led for a while."""
        now = monotonic()
        known = {key.partition(".")[2] for key in self.mirror.entries}
        for test_id in known:
            self._moved.setdefault(test_id, now)
        return [test_id for test_id in known - live if now - self._moved[test_id] > after_s]

    async def forget(self, test_id: str) -> None:
        """Remove what the bucket holds of a test."""
        try:
            await self._kv.purge(_STATE + test_id)
            await self._kv.purge(_LEAD + test_id)
        except _FAILURES as exc:
            log.warning("forget_failed", test_id=test_id, error=repr(exc))
        self._moved.pop(test_id, None)
