"""Every endpoint of the control API: what its parameters are called, and what comes of it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from cypria import types as t
from cypria._operation import operation
from cypria._shapes import listed, make, rows

Time = str | datetime
_JSON = dict[str, Any]


def _as_is(data: Any) -> _JSON:
    return dict(data)


def _text(data: Any) -> str:
    return str(data)


def _done(_data: Any) -> None:
    return None


class Operations:
    """Methods of both clients. Without ``test_id`` they mean the running test, of several the one started last.

    They raise the errors of `cypria.errors`.
    """

    @operation("POST", "/start", make(t.Started))
    def start(
        self, model_a: str, model_b: str, *, traffic_split_percent: float | None = None,
        test_duration_minutes: float | None = None, auto_rollback: bool | None = None,
        success_criteria: Mapping[str, Any] | None = None, failure_criteria: Mapping[str, Any] | None = None,
        primary_metric: str | None = None, guardrails: Sequence[Mapping[str, Any]] | None = None,
        ramp: Mapping[str, Any] | Sequence[float | Mapping[str, Any]] | None = None,
        retry: Mapping[str, Any] | None = None, preset: str | None = None, change_type: str | None = None,
        min_duration_minutes: float | None = None, schedule: Time | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Start a test of ``model_b`` (the canary) against ``model_a``; what is left out is as the edge is configured.

        Raises InvalidRequest naming the field, NotFound for an unknown model, Conflict where one of ``model_a`` runs.
        """

    @operation("GET", "/status", make(t.Status))
    def status(self, test_id: str | None = None) -> None:
        """How a test stands, running or ended."""

    @operation("POST", "/stop", make(t.Test))
    def stop(self, test_id: str | None = None, *, reason: str | None = None) -> None:
        """Stop a test and get its result."""

    @operation("POST", "/rollback", make(t.Changed))
    def rollback(
        self, test_id: str | None = None, *, reason: str | None = None,
        speed: Literal["immediate", "gradual"] | None = None, at: Time | None = None,
    ) -> None:  # fmt: skip
        """Take the canary out: now or ``at`` a time, at once or in steps that the stable model can take."""

    @operation("POST", "/pause", make(t.Changed))
    def pause(self, test_id: str | None = None) -> None:
        """Hold a test at its present split."""

    @operation("POST", "/resume", make(t.Changed))
    def resume(self, test_id: str | None = None) -> None:
        """End a pause."""

    @operation("POST", "/approve", make(t.Changed))
    def approve(self, test_id: str | None = None) -> None:
        """Open the manual gate of the ramp's present step."""

    @operation("PATCH", "/traffic-split", make(t.Changed))
    def set_split(self, traffic_split_percent: float, test_id: str | None = None) -> None:
        """Set the percentage of traffic that B gets."""

    @operation("GET", "/tests/{test_id}", make(t.Test))
    def test(self, test_id: str) -> None:
        """One test, with its result once it has ended."""

    @operation("GET", "/history", make(t.HistoryPage))
    def history_page(self, *, limit: int | None = None, offset: int | None = None, words: bool | None = None) -> None:
        """One page of ended tests, newest first; `history` goes through all of them."""

    @operation("GET", "/tests/{test_id}/report", make(t.Report))
    def _report(self, test_id: str) -> None: ...

    @operation("GET", "/tests/{test_id}/report", _text, accept="text/markdown")
    def _report_markdown(self, test_id: str) -> None: ...

    @operation("GET", "/tests/{test_id}/report", _text, accept="text/html")
    def _report_html(self, test_id: str) -> None: ...

    @operation("GET", "/tests/{test_id}/evidence", make(t.Evidence))
    def evidence_page(self, test_id: str, *, after: int | None = None, limit: int | None = None) -> None:
        """One page of a test's evidence; `evidence` goes through all of them."""

    @operation("GET", "/tests/{test_id}/summary", _as_is)
    def summary(self, test_id: str) -> None:
        """One test in words: whether it is safe, why it ended, what a promotion needs, and its time line."""

    @operation("GET", "/tests/{test_id}/series", _as_is)
    def series(self, test_id: str, *, span: Literal["whole", "recent"] | None = None) -> None:
        """A test over time, for charts: the whole of it, or its last ten minutes."""

    @operation("GET", "/tests/{test_id}/replay", make(t.Replay))
    def replay(self, test_id: str) -> None:
        """Derive the verdict anew from the stored evidence and compare."""

    @operation("POST", "/feedback", _done)
    def feedback(
        self, token: str, *, score: float | None = None, thumbs: Literal["up", "down"] | None = None,
        converted: bool | None = None,
    ) -> None:  # fmt: skip
        """Say what a user thought of a response; ``token`` is its `X-AB-Feedback-Token`. It counts once."""

    @operation("GET", "/models", listed(t.Model, "models"))
    def models(self) -> None:
        """Every model that is known, with its state."""

    @operation("GET", "/models/{name}", make(t.Model))
    def model(self, name: str) -> None:
        """One model, with a row for each of its workers."""

    @operation("POST", "/models", make(t.ModelChanged), spread="entry")
    def register_model(
        self, entry: Mapping[str, Any], *, replace: bool | None = None,
        strategy: Literal["alongside", "rolling"] | None = None,
    ) -> None:  # fmt: skip
        """Register a model and load it, or replace one; ``entry`` is one of the configuration's `models`."""

    @operation("POST", "/models/plan", make(t.Plan), asks=True)
    def plan_models(self, models: Sequence[str | Mapping[str, Any]]) -> None:
        """Whether models (names, or entries of the configuration) would fit; nothing is loaded."""

    @operation("POST", "/models/{name}/load", make(t.ModelChanged))
    def load_model(
        self, name: str, *, reload: bool | None = None, strategy: Literal["alongside", "rolling"] | None = None
    ) -> None:
        """Load a model; ``reload``: also where it is loaded, since its files have changed."""

    @operation("POST", "/models/{name}/unload", make(t.ModelChanged))
    def unload_model(self, name: str) -> None:
        """Let a model finish what it has and unload it."""

    @operation("DELETE", "/models/{name}", make(t.ModelChanged))
    def remove_model(self, name: str) -> None:
        """Unload a model and forget it."""

    @operation("GET", "/keys", listed(t.Key, "keys"))
    def keys(self) -> None:
        """All keys with role and state, never the keys themselves."""

    @operation("POST", "/keys", make(t.Key))
    def create_key(
        self, name: str, role: Literal["client", "viewer", "operator", "admin"], *,
        expires_in_days: float | None = None, expires_at: Time | None = None,
        requests_per_minute: int | None = None, control_per_minute: int | None = None,
    ) -> None:  # fmt: skip
        """Make a key; ``key`` of the answer is shown this once."""

    @operation("POST", "/keys/{name}/rotate", make(t.Key))
    def rotate_key(
        self, name: str, *, overlap_seconds: int | None = None, expires_in_days: float | None = None,
        expires_at: Time | None = None,
    ) -> None:  # fmt: skip
        """Put another key in the place of one, which stays good for a while (an hour by default)."""

    @operation("POST", "/keys/{name}/revoke", make(t.Key))
    def revoke_key(self, name: str) -> None:
        """End a key at once, on every router."""

    @operation("GET", "/monitoring/alerts", rows("alerts"))
    def alerts(self, *, limit: int | None = None, test_id: str | None = None) -> None:
        """Alerts, newest first."""

    @operation("POST", "/alerts/test", rows("destinations"))
    def test_alerts(self) -> None:
        """Send a test alert to every destination; a row for each."""

    @operation("POST", "/alerts/redrive", make(t.Redriven))
    def redrive_alerts(self, destination: str | None = None) -> None:
        """Send dead letters of one destination, or of all, back."""

    @operation("GET", "/monitoring/status", make(t.Monitoring))
    def monitoring(self) -> None:
        """State of the monitor."""

    @operation("POST", "/monitoring/start", make(t.Monitoring))
    def start_monitoring(self, *, check_interval_seconds: float | None = None) -> None:
        """Let verdicts act."""

    @operation("POST", "/monitoring/stop", make(t.Monitoring))
    def stop_monitoring(self, *, check_interval_seconds: float | None = None) -> None:
        """Let verdicts alert only."""

    @operation("GET", "/integrations", rows("integrations"))
    def integrations(self) -> None:
        """Integrations and how each stands."""

    @operation("POST", "/integrations/test", rows("integrations"))
    def test_integrations(self, integration: str | None = None) -> None:
        """Find out whether integrations could be told something."""

    @operation("POST", "/integrations/redrive", make(t.Redriven))
    def redrive_integrations(self, integration: str | None = None) -> None:
        """Tell integrations their dead letters once more."""

    @operation("GET", "/audit", make(t.AuditPage))
    def audit(self, *, since: Time | None = None, actor: str | None = None, limit: int | None = None) -> None:
        """Who did what, newest first."""

    @operation("GET", "/audit/verify", make(t.AuditCheck))
    def verify_audit(self, *, cursor: str | None = None, head: str | None = None, limit: int | None = None) -> None:
        """Whether the chain of audit records is whole, a page of it."""

    @operation("GET", "/config", _as_is)
    def config(self) -> None:
        """The effective configuration, secrets masked."""

    @operation("POST", "/units/export", make(t.Unit), asks=True)
    def export_unit(self, unit: str, *, source: str | None = None, cursor: str | None = None) -> None:
        """A page of what is held on one unit."""

    @operation("POST", "/units/erase", make(t.Unit))
    def erase_unit(self, unit: str, *, source: str | None = None, cursor: str | None = None) -> None:
        """Erase one unit from every test, a page of them."""

    @operation("GET", "/whoami", _as_is)
    def whoami(self) -> None:
        """The key of this call: its name, role and verbs."""

    @operation("GET", "/ready", _as_is)
    def ready(self) -> None:
        """Answers once the edge can serve; raises ServerUnavailable while it cannot."""
