"""Whether automated monitoring acts: key `monitoring` of the KV bucket `control`."""

from typing import Any

from nats.errors import Error as NatsError
from pydantic import ValidationError

from schemas import streams, subjects
from schemas.v1.cloudevent import CONTENT_TYPE, dump, envelope
from schemas.v1.control import MonitoringState
from schemas.v1.events import MonitoringChanged
from services._runtime.bus import Bus, compare_and_set, publish_durable
from services._runtime.clock import now_ms
from services._runtime.kv import KvMirror
from services._runtime.telemetry import get_logger
from services.router.adapters.kv_table import taken

log = get_logger(__name__)

KEY = "monitoring"


class NatsMonitoring:
    """The switch, mirrored in memory; ``default`` holds until somebody first uses it."""

    def __init__(self, bus: Bus, default: MonitoringState) -> None:
        self._bus = bus
        self._mirror = KvMirror(bus, streams.CONTROL.name, self._took)
        self._kv: Any = None
        self._default = default
        self.state = default

    async def start(self) -> None:
        """Read the bucket and begin to watch it."""
        await self._mirror.start()

    async def stop(self) -> None:
        """End the watch."""
        await self._mirror.stop()

    async def switch(
        self, *, active: bool, check_interval_seconds: float | None, actor: str
    ) -> MonitoringState:
        """Turn monitoring on or off; an interval of None keeps the present one. Raises Unavailable."""
        changed: MonitoringState | None = None

        def change(raw: bytes | None) -> bytes | None:
            nonlocal changed
            now = MonitoringState.model_validate_json(raw) if raw else self._default
            interval = (
                now.check_interval_seconds if check_interval_seconds is None else check_interval_seconds
            )
            changed = MonitoringState(active=active, check_interval_seconds=interval, version=now.version + 1)
            if raw and (now.active, now.check_interval_seconds) == (active, interval):
                changed = now
                return None
            return changed.model_dump_json().encode()

        with taken("monitoring_not_switched"):
            if self._kv is None:
                self._kv = await self._bus.js.key_value(streams.CONTROL.name)
            value, revision = await compare_and_set(self._kv, KEY, change)
        if value is not None:
            self._mirror.apply_own(KEY, value, revision)
        await self._tell(self.state, actor)
        return self.state

    async def _tell(self, state: MonitoringState, actor: str) -> None:
        now = now_ms()
        data = MonitoringChanged(
            active=state.active, check_interval_seconds=state.check_interval_seconds, actor=actor, at_ms=now
        )
        event_id = f"monitoring.{state.version}.1"
        payload = dump(envelope("monitoring.changed", event_id, "router", now, data, "monitoring"))
        headers = {"Nats-Msg-Id": event_id, "content-type": CONTENT_TYPE}
        try:
            await publish_durable(
                self._bus.js, subjects.event("monitoring.changed"), payload, headers, patience_s=5
            )
        except (NatsError, TimeoutError, OSError) as exc:
            # The switch itself is in KV, which is what everybody acts on.
            log.warning("monitoring_change_not_announced", error=repr(exc))

    def _took(self, key: str, value: bytes | None, _revision: int) -> None:
        if key != KEY:
            return
        if value is None:
            self.state = self._default
            return
        try:
            self.state = MonitoringState.model_validate_json(value)
        except ValidationError as exc:
            log.error("monitoring_state_unreadable", errors=exc.error_count())
