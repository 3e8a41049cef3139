"""The control API as data: every verb's place over HTTP, its role, what it takes and what it answers."""

from dataclasses import dataclass, field

from pydantic import BaseModel

from schemas.v1 import control as c
from schemas.v1 import query as q
from schemas.v1 import record as r
from schemas.v1.experiment import TestResult
from services.router.control import key_params as k
from services.router.control import model_params as m
from services.router.control import params as p
from services.router.domain.account.shapes import TestAccount
from services.router.domain.auth import Role

PREFIX = "/v1/ab-testing"


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb; ``name`` is also its token on `cypria.control.<verb>`.

    ``handler`` names a method of the handlers; ``aliases`` are further tokens on the bus. Path parameters, query and
    body together make one ``takes``; ``in_query`` names what a command is usually given as a query, ``of_headers`` what
    comes as a header. ``errors`` are the statuses of its refusals beyond those that any verb may answer. What is
    ``of_clients`` comes as often as inference: it has inference's limit, and only refusals for want of a key or role
    are audited. What ``asks`` changes nothing, though its question comes in a body.
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
    errors: tuple[int, ...] = ()
    in_query: tuple[str, ...] = ()
    of_headers: tuple[str, ...] = ()
    asks: bool = False

    @property
    def handler(self) -> str:
        """The method that carries it out."""
        return self.name.replace("-", "_")

    @property
    def changes(self) -> bool:
        """Whether it is an operator's command; those are always audited."""
        return self.method != "GET" and not self.of_clients and not self.asks

    @property
    def http_path(self) -> str:
        """The whole path."""
        return PREFIX + self.path


VERBS: tuple[Verb, ...] = (
    Verb("start", "POST", "/start", Role.OPERATOR, c.StartRequest, c.StartReply, "Start a test", errors=(404, 409)),
    Verb("status", "GET", "/status", Role.VIEWER, c.TestRef, c.StatusReply, "The running test, or one by id",
         errors=(404, 504)),
    Verb("stop", "POST", "/stop", Role.OPERATOR, c.StopCommand, TestResult, "Stop a test and get its result",
         errors=(404,)),
    Verb("rollback", "POST", "/rollback", Role.OPERATOR, c.RollbackCommand, p.Changed, "Take the canary out",
         errors=(404, 409)),
    Verb(
        "traffic-split", "PATCH", "/traffic-split", Role.OPERATOR, c.SplitCommand, p.SplitChanged,
        "Change the canary's share of the traffic", aliases=("split",), errors=(404, 409),
    ),
    Verb("pause", "POST", "/pause", Role.OPERATOR, c.TestRef, p.Changed, "Hold a test at its present split",
         errors=(404, 409)),
    Verb("resume", "POST", "/resume", Role.OPERATOR, c.TestRef, p.Changed, "End a pause", errors=(404, 409)),
    Verb("approve", "POST", "/approve", Role.OPERATOR, c.TestRef, p.Changed, "Approve what waits for approval",
         errors=(404, 409)),
    Verb("config", "GET", "/config", Role.ADMIN, p.NoParams, p.Anything, "The configuration, secrets masked", "system"),
    Verb("history", "GET", "/history", Role.VIEWER, p.HistoryParams, p.HistoryShown, "Ended tests, newest first",
         errors=(504,)),
    Verb("tests", "GET", "/tests/{test_id}", Role.VIEWER, p.TestParams, TestResult, "One test", aliases=("test",),
         errors=(404, 504)),
    Verb("summary", "GET", "/tests/{test_id}/summary", Role.VIEWER, p.TestParams, TestAccount,
         "One test in words: whether it is safe, why it ended, what a promotion needs, and its time line",
         errors=(404, 504)),
    Verb("series", "GET", "/tests/{test_id}/series", Role.VIEWER, p.SeriesParams, p.SeriesShown,
         "A test over time, for charts", errors=(404, 504)),
    Verb("whoami", "GET", "/whoami", Role.CLIENT, p.NoParams, p.WhoAmI, "The key of this call: name, role, verbs",
         "system"),
    Verb(
        "feedback", "POST", "/feedback", Role.CLIENT, c.FeedbackCommand, c.FeedbackReply,
        "Say what a user thought of a response", "feedback", of_clients=True, errors=(409,),
    ),
    Verb(
        "report", "GET", "/tests/{test_id}/report", Role.VIEWER, p.ReportParams, r.Report,
        "The decision report, as JSON, Markdown or HTML by Accept", errors=(404, 504), of_headers=("accept",),
    ),
    Verb(
        "evidence", "GET", "/tests/{test_id}/evidence", Role.VIEWER, p.EvidenceParams, r.EvidenceReply,
        "The evidence behind a verdict by tick, page by page; fields at their default are left out",
        errors=(404, 410, 504),
    ),
    Verb(
        "replay", "GET", "/tests/{test_id}/replay", Role.VIEWER, p.TestParams, r.Replay,
        "Derive the verdict anew from the stored evidence and compare", errors=(404, 409, 410, 504),
    ),
    Verb(
        "monitoring-status", "GET", "/monitoring/status", Role.VIEWER, p.NoParams, p.MonitoringShown,
        "State of the monitor", "monitoring",
    ),
    Verb(
        "monitoring-alerts", "GET", "/monitoring/alerts", Role.VIEWER, p.AlertsParams, q.AlertsReply,
        "Alerts, newest first", "monitoring", aliases=("alerts",), errors=(504,),
    ),
    Verb(
        "monitoring-start", "POST", "/monitoring/start", Role.OPERATOR, c.MonitoringCommand, p.MonitoringSwitched,
        "Let verdicts act", "monitoring", in_query=("check_interval_seconds",),
    ),
    Verb(
        "monitoring-stop", "POST", "/monitoring/stop", Role.OPERATOR, c.MonitoringCommand, p.MonitoringSwitched,
        "Let verdicts alert only", "monitoring", in_query=("check_interval_seconds",),
    ),
    Verb(
        "alerts-test", "POST", "/alerts/test", Role.ADMIN, p.NoParams, q.AlertTestReply,
        "Send a test alert to every destination", "monitoring", errors=(504,),
    ),
    Verb(
        "alerts-redrive", "POST", "/alerts/redrive", Role.ADMIN, p.RedriveParams, q.RedriveReply,
        "Send dead letters of alerts back", "monitoring", errors=(404, 504),
    ),
    Verb("integrations", "GET", "/integrations", Role.VIEWER, p.NoParams, q.IntegrationsReply,
         "Integrations and how each stands", "integrations", errors=(504,)),
    Verb("integrations-test", "POST", "/integrations/test", Role.ADMIN, p.IntegrationParams, q.IntegrationsTestReply,
         "Find out whether integrations could be told something", "integrations", errors=(404, 504)),
    Verb("integrations-redrive", "POST", "/integrations/redrive", Role.ADMIN, p.IntegrationParams, q.RedriveReply,
         "Tell integrations their dead letters once more", "integrations", errors=(404, 504)),
    Verb("units-export", "POST", "/units/export", Role.ADMIN, p.UnitParams, p.UnitsExported,
         "What is held on one unit, page by page", "privacy", errors=(504,)),
    Verb("units-erase", "POST", "/units/erase", Role.ADMIN, p.UnitParams, p.UnitsErased,
         "Erase one unit from every test, page by page", "privacy", errors=(504,)),
    Verb("audit", "GET", "/audit", Role.ADMIN, p.AuditParams, q.AuditReply, "Who did what, newest first", "system",
         errors=(504,)),
    Verb("keys", "GET", "/keys", Role.ADMIN, p.NoParams, k.KeysShown, "Keys with role and state, never the keys",
         "keys"),
    Verb("keys-create", "POST", "/keys", Role.ADMIN, k.KeyCreateParams, k.KeyMade,
         "Make a key; the answer shows it this once", "keys", errors=(409,)),
    Verb("keys-rotate", "POST", "/keys/{name}/rotate", Role.ADMIN, k.KeyRotateParams, k.KeyMade,
         "Put another key in the place of one, which stays good for a while", "keys", errors=(404, 409)),
    Verb("keys-revoke", "POST", "/keys/{name}/revoke", Role.ADMIN, k.KeyParams, k.KeyShown,
         "End a key at once, on every router", "keys", errors=(404, 409)),
    Verb("audit-verify", "GET", "/audit/verify", Role.ADMIN, p.AuditVerifyParams, q.AuditVerification,
         "Whether the chain of audit records is whole, page by page", "system", errors=(504,)),
    Verb("models", "GET", "/models", Role.VIEWER, p.NoParams, m.ModelsShown, "Models and their state", "models"),
    Verb("models-register", "POST", "/models", Role.ADMIN, m.RegisterParams, m.ModelChanged,
         "Register a model and load it, or replace one", "models", errors=(409,)),
    Verb("models-plan", "POST", "/models/plan", Role.VIEWER, m.PlanParams, m.PlanShown,
         "Whether models would fit, on every worker; nothing is loaded", "models", errors=(404,), asks=True),
    Verb("models-load", "POST", "/models/{name:path}/load", Role.ADMIN, m.LoadParams, m.ModelChanged, "Load a model",
         "models", errors=(404, 409)),
    Verb("models-unload", "POST", "/models/{name:path}/unload", Role.ADMIN, m.ModelParams, m.ModelChanged,
         "Drain a model and unload it", "models", errors=(404, 409)),
    Verb("model", "GET", "/models/{name:path}", Role.VIEWER, m.ModelParams, m.ModelDetail,
         "One model, with a row for each worker", "models", errors=(404,)),
    Verb("models-remove", "DELETE", "/models/{name:path}", Role.ADMIN, m.ModelParams, m.ModelChanged,
         "Unload a model and forget it", "models", errors=(404, 409)),
)  # fmt: skip

EVENTS = Verb(
    "events", "GET", "/events", Role.VIEWER, p.EventsParams, None, "State changes, windows and alerts, live", "system"
)  # fmt: skip
"""Server-sent events; over HTTP only: on the bus one subscribes instead."""

BY_TOKEN = {token: verb for verb in VERBS for token in (verb.name, *verb.aliases)}
