"""Asks every worker whether models would fit, and gathers what they say."""

from collections.abc import Collection
from typing import Any

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from pydantic import ValidationError

from schemas import subjects
from schemas.v1.models import ModelPlan, ModelQuery
from services._runtime.bus import Bus
from services._runtime.clock import monotonic
from services._runtime.telemetry import get_logger
from services.router.domain.refusals import Unavailable

log = get_logger(__name__)

WAIT_S = 2.0
STRANGER_S = 0.5
"""How long more workers may answer than are known: one without any model sends no heartbeat."""


class NatsPlans:
    """`cypria.models.plan`, asked of all workers at once."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def plan(self, specs: list[dict[str, Any]], known: Collection[str]) -> list[ModelPlan]:
        """The workers' answers by name: until each of the ``known`` ones has answered, at most WAIT_S seconds.

        Raises Unavailable when the bus is away.
        """
        query = ModelQuery(specs=specs).model_dump_json().encode()
        found: dict[str, ModelPlan] = {}
        try:
            inbox = self._bus.nc.new_inbox()
            subscription = await self._bus.nc.subscribe(inbox)
            try:
                await self._bus.nc.publish(subjects.models("plan"), query, reply=inbox)
                end = monotonic() + (WAIT_S if known else STRANGER_S)
                while (left := end - monotonic()) > 0 and not (known and set(known) <= found.keys()):
                    try:
                        msg = await subscription.next_msg(timeout=left)
                    except TimeoutError:
                        break
                    if (msg.headers or {}).get("Status") == "503":
                        break  # no worker listens
                    _take(msg, found)
            finally:
                await subscription.unsubscribe()
        except (NatsError, OSError) as exc:
            raise Unavailable("the bus failed while the workers were asked: try again", retry_after_s=1) from exc
        return [found[worker] for worker in sorted(found)]


def _take(msg: Msg, found: dict[str, ModelPlan]) -> None:
    if "Cypria-Error" in (msg.headers or {}):
        log.warning("plan_refused", answer=msg.data[:500].decode("utf-8", "replace"))
        return
    try:
        plan = ModelPlan.model_validate_json(msg.data)
    except ValidationError as exc:
        log.warning("plan_unreadable", errors=exc.error_count())
        return
    found[plan.worker] = plan
