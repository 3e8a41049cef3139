"""What integrations are told of the events of a test."""

from schemas.v1.common import Decision
from schemas.v1.events import TestEvent
from schemas.v1.experiment import VerdictRecord
from schemas.v1.integrations import Decided, Occasion, RolledBack, Started
from services.alerts.domain.derive import AUTOMATIC, ROLLED_BACK

STARTED = "test.started"
_ENDED = frozenset({"test.completed", ROLLED_BACK, "test.failed"})
MORE_IS_BETTER = frozenset({"thumbs", "conversion", "score"})
"""Primary metrics of which more is better; of all others less is."""


def occasions(kind: str, event_id: str, event: TestEvent) -> list[tuple[str, Occasion]]:
    """(kind of the call, what it is told), in order; none for an event that says nothing to integrations."""
    if kind == STARTED:
        return [("started", _started(event_id, event))]
    told: list[tuple[str, Occasion]] = []
    if kind == ROLLED_BACK:
        told.append(("rolled_back", _rolled_back(event_id, event)))
    if kind in _ENDED:
        told.append(("decided", _decided(event_id, event)))
    return told


def gain_percent(verdict: VerdictRecord | None) -> float | None:
    """How much better B is in the primary metric, from the verdict's effect; None where it rests on something else."""
    metric = verdict.details.get("metric") if verdict else None
    if verdict is None or verdict.value is None or not isinstance(metric, str):
        return None
    return verdict.value if metric in MORE_IS_BETTER else -verdict.value


def _started(event_id: str, event: TestEvent) -> Started:
    configured = event.configuration
    return Started(
        event_id=f"{event_id}.started", test_id=event.test_id, model_a=event.model_a, model_b=event.model_b,
        at_ms=event.at_ms, traffic_split_percent=event.share_bp / 100, actor=event.actor,
        duration_minutes=configured.duration_minutes if configured else None,
        primary_metric=configured.primary_metric if configured else "",
        tags=dict(configured.tags) if configured else {},
    )  # fmt: skip


def _rolled_back(event_id: str, event: TestEvent) -> RolledBack:
    order = event.order
    verdict = order.verdict if order else None
    return RolledBack(
        event_id=f"{event_id}.rolled_back", test_id=event.test_id, model_a=event.model_a, model_b=event.model_b,
        at_ms=event.at_ms, automatic=order is None or order.actor in AUTOMATIC, rule=order.rule if order else "",
        reason=(order.reason if order else None) or event.reason or "", actor=order.actor if order else event.actor,
        value=verdict.value if verdict else None, bound=verdict.bound if verdict else None,
        threshold=verdict.threshold if verdict else None, n_a=verdict.n_a if verdict else 0,
        n_b=verdict.n_b if verdict else 0,
    )  # fmt: skip


def _decided(event_id: str, event: TestEvent) -> Decided:
    result = event.result
    verdict = result.verdict if result else None
    decision = result.decision if result else None
    if decision is None:
        decision = Decision.ROLLBACK if event.order else Decision.INCONCLUSIVE
    return Decided(
        event_id=f"{event_id}.decided", test_id=event.test_id, model_a=event.model_a, model_b=event.model_b,
        at_ms=event.at_ms, decision=decision, status=event.status,
        reason=(result.reason if result else None) or event.reason or "", rule=verdict.rule if verdict else "",
        metric=str(verdict.details.get("metric", "")) if verdict else "",
        performance_gain_percent=gain_percent(verdict),
        n_a=verdict.n_a if verdict else 0, n_b=verdict.n_b if verdict else 0,
        variants={name.removeprefix("variant_"): one for name, one in result.metrics_summary.items()} if result else {},
        tags=dict(result.tags) if result else {},
    )  # fmt: skip
