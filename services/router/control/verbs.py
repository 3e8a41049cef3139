"""The control API as data: every verb's place over HTTP, its role, what it takes and what it answers."""

from dataclasses import dataclass, field

from pydantic import BaseModel

from schemas.v1 import control as c
from schemas.v1 import query as q
from schemas.v1 import record as r
from schemas.v1.experiment import TestResult
from services.router.control import params as p
from services.router.domain.auth import Role

PREFIX = "/v1/ab-testing"


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb; ``name`` is also its token on `cypria.control.<verb>`.

    ``handler`` names a method of `Handlers`; ``aliases`` are further tokens on the bus. Path parameters, query and
    body together make one ``takes``. What is ``of_clients`` comes as often as inference: it has inference's limit, and
    only refusals for want of a key or role are audited.
    """

    name: str
    method: str
    path: str
    role: Role
    takes: type[BaseModel]
    gives: type[BaseModel] | None
    summary: str
    tag: str = "tests"
    aliases: tuple[str, ...] = field(default=())
    of_clients: bool = False

    @property
    def handler(self) -> str:
        """The method of `Handlers` that carries it out."""
        return self.name.replace("-", "_")

    @property
    def changes(self) -> bool:
        """Whether it is an operator's command; those are always audited."""
        return self.method != "GET" and not self.of_clients

    @property
    def http_path(self) -> str:
        """The whole path."""
        return PREFIX + self.path


VERBS: tuple[Verb, ...] = (
    Verb("start", "POST", "/start", Role.OPERATOR, c.StartRequest, c.StartReply, "Start a test"),
    Verb("status", "GET", "/status", Role.VIEWER, c.TestRef, c.StatusReply, "The running test, or one by id"),
    Verb("stop", "POST", "/stop", Role.OPERATOR, c.StopCommand, TestResult, "Stop a test and get its result"),
    Verb("rollback", "POST", "/rollback", Role.OPERATOR, c.RollbackCommand, None, "Take the canary out"),
    Verb(
        "traffic-split", "PATCH", "/traffic-split", Role.OPERATOR, c.SplitCommand, None,
        "Change the canary's share of the traffic", aliases=("split",),
    ),
    Verb("pause", "POST", "/pause", Role.OPERATOR, c.TestRef, None, "Hold a test at its present split"),
    Verb("resume", "POST", "/resume", Role.OPERATOR, c.TestRef, None, "End a pause"),
    Verb("approve", "POST", "/approve", Role.OPERATOR, c.TestRef, None, "Approve what waits for approval"),
    Verb("config", "GET", "/config", Role.ADMIN, p.NoParams, None, "The configuration, secrets masked", "system"),
    Verb("history", "GET", "/history", Role.VIEWER, p.HistoryParams, q.HistoryReply, "Ended tests, newest first"),
    Verb("tests", "GET", "/tests/{test_id}", Role.VIEWER, p.TestParams, TestResult, "One test", aliases=("test",)),
    Verb(
        "feedback", "POST", "/feedback", Role.CLIENT, c.FeedbackCommand, c.FeedbackReply,
        "Say what a user thought of a response", "feedback", of_clients=True,
    ),
    Verb(
        "report", "GET", "/tests/{test_id}/report", Role.VIEWER, p.ReportParams, r.Report,
        "The decision report, as JSON, Markdown or HTML by Accept",
    ),
    Verb(
        "evidence", "GET", "/tests/{test_id}/evidence", Role.VIEWER, p.EvidenceParams, r.EvidenceReply,
        "The evidence behind a verdict by tick, page by page; fields at their default are left out",
    ),
    Verb(
        "replay", "GET", "/tests/{test_id}/replay", Role.VIEWER, p.TestParams, r.Replay,
        "Derive the verdict anew from the stored evidence and compare",
    ),
    Verb(
        "monitoring-status", "GET", "/monitoring/status", Role.VIEWER, p.NoParams, None, "State of the monitor",
        "monitoring",
    ),
    Verb(
        "monitoring-alerts", "GET", "/monitoring/alerts", Role.VIEWER, p.AlertsParams, q.AlertsReply,
        "Alerts, newest first", "monitoring", aliases=("alerts",),
    ),
    Verb(
        "monitoring-start", "POST", "/monitoring/start", Role.OPERATOR, c.MonitoringCommand, None,
        "Let verdicts act", "monitoring",
    ),
    Verb(
        "monitoring-stop", "POST", "/monitoring/stop", Role.OPERATOR, c.MonitoringCommand, None,
        "Let verdicts alert only", "monitoring",
    ),
    Verb(
        "alerts-test", "POST", "/alerts/test", Role.ADMIN, p.NoParams, q.AlertTestReply,
        "Send a test alert to every destination", "monitoring",
    ),
    Verb(
        "alerts-redrive", "POST", "/alerts/redrive", Role.ADMIN, p.RedriveParams, q.RedriveReply,
        "Send dead letters of alerts back", "monitoring",
    ),
    Verb("audit", "GET", "/audit", Role.ADMIN, p.AuditParams, q.AuditReply, "Who did what, newest first", "system"),
    Verb("models", "GET", "/models", Role.VIEWER, p.NoParams, None, "Models and their state", "models"),
    Verb("models-load", "POST", "/models/{name:path}/load", Role.ADMIN, p.ModelParams, None, "Load a model", "models"),
    Verb("models-unload", "POST", "/models/{name:path}/unload", Role.ADMIN, p.ModelParams, None, "Unload", "models"),
)  # fmt: skip

EVENTS = Verb(
    "events", "GET", "/events", Role.VIEWER, p.NoParams, None, "State changes, windows and alerts, live", "system"
)  # fmt: skip
"""Server-sent events; over HTTP only: on the bus one subscribes instead."""

BY_TOKEN = {token: verb for verb in VERBS for token in (verb.name, *verb.aliases)}
