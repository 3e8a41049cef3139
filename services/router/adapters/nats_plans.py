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
"""How long workers may answer of which no heartbeat has been heard."""


class NatsPlans:
    """`cypria.models.plan`, asked of all workers at once."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def plan(self, specs: list[dict[str, Any]], known: Collection[str]) -> list[ModelPlan]:
        """The workers' answers by name: until each of the ``known`` ones has answered, at most WAIT_S seconds.

        Where those have no room, others may still answer for a moment: a worker without any model sends no heartbeat.
        Raises Unavailable when the bus is away.
        """
        query = ModelQuery(specs=specs).model_dump_json().encode()
        found: dict[str, ModelPlan] = {}
        refused = 0
        try:
            inbox = self._bus.nc.new_inbox()
            subscription = await self._bus.nc.subscribe(inbox)
            try:
                await self._bus.nc.publish(subjects.models("plan"), query, reply=inbox)
                began = monotonic()
                while True:
                    lacks = len(set(known) - found.keys()) > refused
                    if found and not lacks and any(plan.fits for plan in found.values()):
                        break
                    left = began + (WAIT_S if lacks else STRANGER_S) - monotonic()
                    if left <= 0:
                        break
                    try:
                        msg = await subscription.next_msg(timeout=left)
                    except TimeoutError:
                        break
                    if (msg.headers or {}).get("Status") == "503":
                        break  # no worker listens
                    refused += not _take(msg, found)
            finally:
                await subscription.unsubscribe()
        except (NatsError, OSError) as exc:
            raise Unavailable("the bus failed while the workers were asked: try again", retry_after_s=1) from exc
        return [found[worker] for worker in sorted(found)]


def _take(msg: Msg, found: dict[str, ModelPlan]) -> bool:
    if "Cypria-Error" in (msg.headers or {}):
        log.info("plan_refused", answer=msg.data[:500].decode("utf-8", "replace"))
        return False
    try:
        plan = ModelPlan.model_validate_json(msg.data)
    except ValidationError as exc:
        log.warning("plan_unreadable", errors=exc.error_count())
        return False
    found[plan.worker] = plan
    return True
