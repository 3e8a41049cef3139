"""Parameters of questions, as `schemas.v1.control` has the bodies of commands, and the shapes of short answers."""

import re
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from schemas.v1.control import Command
from schemas.v1.query import HistoryReply, MonitoringStatus
from schemas.v1.record import EvidenceState, Series
from services._runtime.settings_model import UnitSource


class NoParams(Command):
    """Nothing."""


class TestParams(Command):
    """One test by id."""

    __test__ = False

    test_id: str = Field(min_length=1, max_length=128)


class ReportParams(TestParams):
    """A test's report; ``accept`` is an `Accept` header's value: JSON, Markdown or HTML."""

    accept: str = Field(default="", max_length=1024)


class EvidenceParams(TestParams):
    """A page of a test's evidence: ``after`` is the ``last`` of the page before."""

    after: int = Field(default=0, ge=0)
    limit: int = Field(default=1000, ge=1, le=10_000)


class SeriesParams(TestParams):
    """A test over time: the whole of it, or its last ten minutes."""

    span: Literal["whole", "recent"] = "whole"


class EventsParams(Command):
    """With ``live``, how every live test stands comes too, about once a second; windows then do not."""

    live: bool = False


class HistoryParams(Command):
    """A page of ended tests."""

    limit: int = Field(default=50, ge=1, le=1000)
    offset: int = Field(default=0, ge=0, le=1_000_000)
    words: bool = Field(default=False, description="say in words, too, why each test ended as it did")


class AlertsParams(Command):
    """Alerts, newest first."""

    limit: int = Field(default=50, ge=1, le=10_000)
    test_id: str | None = Field(default=None, min_length=1, max_length=128)


class RedriveParams(Command):
    """Dead letters of one destination, by default of all."""

    destination: str | None = Field(default=None, min_length=1, max_length=512)


class IntegrationParams(Command):
    """One integration, by default all."""

    integration: str | None = Field(default=None, min_length=1, max_length=512)


class AuditParams(Command):
    """Audit records, newest first; ``since`` is RFC 3339."""

    since: str | None = None
    actor: str | None = Field(default=None, min_length=1, max_length=128)
    limit: int = Field(default=100, ge=1, le=10_000)

    @field_validator("since")
    @classmethod
    def _is_a_time(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                datetime.fromisoformat(value)
            except ValueError:
                raise ValueError("not a time: give RFC 3339, such as 2025-01-01T12:00:00Z") from None
        return value


class AuditVerifyParams(Command):
    """A page of the check of the audit's chain; ``head`` is one that was written down, as ``SEQUENCE:HASH``."""

    cursor: str = Field(default="", max_length=256)
    head: str | None = None
    limit: int = Field(default=5000, ge=1, le=20_000)

    @field_validator("head")
    @classmethod
    def _is_a_head(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[0-9]{1,18}:[0-9a-f]{64}", value):
            raise ValueError("no head: give SEQUENCE:HASH as an earlier `cypria audit verify` printed it")
        return value


class UnitParams(Command):
    """One unit: the value that requests bring (of a session, user, key or address), where ``source`` says.

    ``cursor`` is the ``next`` of the page before.
    """

    unit: str = Field(min_length=1, max_length=8192)
    source: UnitSource | None = None
    cursor: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,128}/(WINDOWS|METRICS)/[0-9]{1,18}$")


class UnitOfTest(BaseModel):
    """What is held on a unit of a test, as far as this page goes; ``unit_hash`` is its pseudonym there.

    ``held`` names the sets that its hash is in, ``windows`` counts the messages with it. ``variant`` is that of its
    requests, null where none is held. Times are RFC 3339.
    """

    test_id: str
    unit_hash: str
    variant: str | None = None
    erased_at: str | None = None
    first_seen: str | None = None
    last_seen: str | None = None
    held: list[str] = []
    windows: int = 0
    facts: list[dict[str, Any]] = []


class UnitsExported(BaseModel):
    """A page; ``next`` is the cursor of the next one, null after the last.

    ``remains`` says why something is held of a unit that was erased, and for how long; null where nothing is.
    """

    tests: list[UnitOfTest]
    next: str | None = None
    remains: str | None = None


class UnitErased(BaseModel):
    """A unit of a test, nobody's from ``erased_at`` on; ``batches`` of facts were deleted, ``left`` were not yet."""

    test_id: str
    unit_hash: str
    erased_at: str
    batches: int = 0
    left: int = 0


class UnitsErased(BaseModel):
    """A page; ``next`` as for an export. ``remains`` says what is still there and for how long."""

    tests: list[UnitErased]
    next: str | None = None
    remains: str


class HistoryShown(HistoryReply):
    """A page of results; ``why``, where words were asked for, says why each test ended as it did, by its id."""

    why: dict[str, str] = Field(default_factory=dict)


class SeriesShown(BaseModel):
    """A test over time; null while nothing of it could be read. ``progress`` is from 0 to 1 while it is being read."""

    test_id: str
    state: EvidenceState
    progress: float = 1.0
    message: str = ""
    series: Series | None = None


class WhoAmI(BaseModel):
    """The key that a call came with; ``may`` names the verbs that its role allows."""

    name: str
    role: str
    may: list[str]


class Anything(BaseModel):
    """An object whose fields are not the control API's."""

    model_config = ConfigDict(extra="allow")


class Changed(BaseModel):
    """A test's status after a command; of a rollback also ``scheduled``."""

    status: str
    test_id: str


class SplitChanged(Changed):
    """The split in force from now on."""

    traffic_split_percent: float


class MonitoringSwitched(BaseModel):
    """The switch as it is now; ``status`` is ``started`` or ``stopped``."""

    status: str
    monitoring_active: bool
    check_interval_seconds: float


class MonitoringShown(MonitoringStatus):
    """The monitor's own word; ``degraded`` says that it gave none."""

    degraded: list[str] | None = None
