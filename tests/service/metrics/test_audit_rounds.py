"""The audit's chain as metrics checks it by itself: cheaply, all of it in the end, and whoever has to know is told."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from schemas import streams, subjects
from schemas.v1.alerts import Alert
from schemas.v1.cloudevent import CloudEvent
from schemas.v1.common import AlertLevel
from schemas.v1.query import AuditVerification, AuditVerifyQuery
from services.metrics.adapters.audit_checks import AuditChecks
from services.metrics.adapters.audit_rounds import AuditRounds
from services.metrics.adapters.nats_alarms import Alarms
from services.metrics.domain.chain import Place
from tests.harness import NatsServer, eventually
from tests.service.metrics.audit_parts import AUDIT, Parts, chained, message

DAY_S = 86_400.0


@pytest.fixture
async def parts(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Parts]:
    async with chained(nats_server, tmp_path) as made:
        yield made


def rounds(parts: Parts, all_every_s: float = DAY_S, checks: AuditChecks | None = None) -> AuditRounds:
    return AuditRounds(checks or parts.checks(), Alarms(parts.bus), 60, all_every_s, again_s=0.01)


def figure(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"cypria_metrics_audit_{name}", labels) or 0.0


async def told(server: NatsServer) -> list[Alert]:
    """All alerts, oldest first."""
    nc = await server.connect("provision")
    try:
        js = nc.jetstream(timeout=10)
        state = (await js.stream_info(streams.ALERTS.name)).state
        found = [await js.get_msg(streams.ALERTS.name, number) for number in range(1, state.last_seq + 1)]
    finally:
        await nc.close()
    assert all(one.subject == subjects.alert(AlertLevel.CRITICAL) for one in found)
    return [CloudEvent[Alert].model_validate_json(one.data or b"").data for one in found]


async def test_what_is_new_is_checked_and_all_of_it_when_its_time_comes(parts: Parts, nats_server: NatsServer) -> None:
    own, records = rounds(parts), figure("checked_records_total")
    await own.round()
    assert figure("checked_records_total") - records == 20
    await own.round()
    nc = await nats_server.connect("router")
    for number in (21, 22, 23):
        await nc.jetstream().publish(AUDIT, message(number))
    await nc.close()
    await eventually(lambda: parts.archive.head.sequence == 23)
    await own.round()
    assert figure("checked_records_total") - records == 23
    good = await parts.links()

    await parts.command("UPDATE actor = 'nobody' WHERE sequence = 5")
    broken = figure("checks_total", result="broken")
    await own.round()  # not new: its time has not come
    assert (figure("checks_total", result="broken"), figure("touched")) == (broken, 0)
    for one in (later := rounds(parts)), later, rounds(parts, all_every_s=0):
        await one.round()
        assert figure("touched") == 1
    assert figure("checks_total", result="broken") == broken + 3
    [alert] = await eventually(lambda: told(nats_server))
    assert alert.incident.startswith("metrics.audit.changed.")
    assert alert.incident.endswith(".5")
    assert "record 5 is not what was chained" in alert.message

    await parts.put(good)
    await later.round()
    assert figure("touched") == 1, "only what is behind the place was looked at"
    records = figure("checked_records_total")
    await later.round()
    assert (figure("touched"), figure("checked_records_total") - records) == (0, 23)
    await parts.command("UPDATE hash = 'x' WHERE sequence = 0")
    await later.round()
    assert figure("touched") == 1, "the end of the chain is looked at each time"


async def test_what_was_deleted_from_the_stream_is_told_too(parts: Parts, nats_server: NatsServer) -> None:
    admin = await nats_server.connect("provision")
    for sequence in (9, 10):
        await admin.jetstream(timeout=10).delete_msg(streams.AUDIT.name, sequence)
    await admin.close()
    deleted = figure("checks_total", result="deleted")
    await rounds(parts).round()
    assert (figure("checks_total", result="deleted") - deleted, figure("touched")) == (1, 1)
    [alert] = await eventually(lambda: told(nats_server))
    assert "records 9 to 10 were deleted from AUDIT" in alert.message


class Mended(AuditChecks):
    """What does not fit has been put right by the time that it is looked for again."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts.bus, parts.engine, parts.archive, 90)
        self._parts, self._good, self.mended = parts, list(parts.taken), 0

    async def page(self, place: Place | None, question: AuditVerifyQuery) -> tuple[AuditVerification, Place | None]:
        found = await super().page(place, question)
        if found[0].problem is not None:
            await self._parts.put(self._good)
            self.mended += 1
        return found


async def test_what_is_over_at_the_second_look_is_told_to_nobody(parts: Parts, nats_server: NatsServer) -> None:
    checks = Mended(parts)
    await parts.command("UPDATE actor = 'nobody' WHERE sequence = 5")
    await rounds(parts, checks=checks).round()
    assert (checks.mended, figure("touched")) == (1, 0)
    assert await told(nats_server) == []
