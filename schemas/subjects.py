"""Every subject on the bus. No other module spells one out.

Functions build concrete subjects; UPPER_CASE constants are patterns to subscribe to.
"""

import re

REQUEST = "cypria.request.*"
CONTROL = "cypria.control.*"
INFER = "cypria.infer.>"
HEARTBEAT = "cypria.heartbeat.>"
FLOW = "cypria.flow.*"
MODELS = "cypria.models.*"
QUERY = "cypria.query.*"
VERDICT = "cypria.verdict.*"
METRIC = "cypria.metric.*"
WINDOW = "cypria.window.*"
LEASE = "cypria.lease.*"
PEER = "cypria.peer.*"
ROLLBACK = "cypria.rollback.*"
EVENT = "cypria.event.>"
ALERT = "cypria.alert.*"
ALERTS = "cypria.alerts.*"
AUDIT = "cypria.audit.*"
DLQ = "cypria.dlq.>"
INTEGRATION = "cypria.integration.>"
INTEGRATION_EVENT = "cypria.integration.event.*"

PATTERNS = (
    REQUEST, CONTROL, INFER, HEARTBEAT, FLOW, MODELS, QUERY, VERDICT, METRIC, WINDOW,
    LEASE, PEER, ROLLBACK, EVENT, ALERT, ALERTS, AUDIT, DLQ, INTEGRATION,
)  # fmt: skip

INBOX = "_INBOX."
"""Where questions are answered; below it, each user of the bus has a part of its own."""

CALLER_INBOX = "_INBOX.caller."
"""Where outside callers are answered, and nowhere else: a reply subject is the caller's word, but it is the router
that publishes there, with the router's permissions."""

PARTITIONS = 8
"""Partitions of METRICS and WINDOWS; a fact's partition is its unit hash modulo this."""

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")


def token(name: str) -> str:
    """One subject token for any name: unsafe characters become ``=XX`` (hex of each UTF-8 byte).

    Injective and reversible by `untoken`. Raises ValueError for an empty name.
    """
    if not name:
        raise ValueError("a subject token needs a name of at least one character")
    return _UNSAFE.sub(lambda m: "".join(f"={b:02X}" for b in m.group().encode()), name)


def untoken(value: str) -> str:
    """The name that `token` encoded."""
    raw = re.sub(rb"=([0-9A-F]{2})", lambda m: bytes([int(m.group(1), 16)]), value.encode())
    return raw.decode()


def request(kind: str) -> str:
    """Inference over the bus; kind is ``chat``, ``completions`` or ``embeddings``."""
    return f"cypria.request.{kind}"


def control(verb: str) -> str:
    """A control command or question over the bus."""
    return f"cypria.control.{verb}"


def infer(model: str, worker: str) -> str:
    """Requests for one worker of one model."""
    return f"cypria.infer.{token(model)}.{worker}"


def infer_all(worker: str) -> str:
    """Requests for one worker, whatever the model."""
    return f"cypria.infer.*.{worker}"


def infer_model(subject: str) -> str:
    """The model that a subject made by `infer` is of."""
    return untoken(subject.split(".")[2])


def heartbeat(model: str, worker: str) -> str:
    """Load and state of one worker of one model."""
    return f"cypria.heartbeat.{token(model)}.{worker}"


def flow(worker: str) -> str:
    """Credit, keep-alive and cancel for one worker."""
    return f"cypria.flow.{worker}"


def models(verb: str) -> str:
    """Model life cycle; verb is ``load``, ``unload``, ``list`` or ``plan``."""
    return f"cypria.models.{verb}"


def query(name: str) -> str:
    """A question about the past."""
    return f"cypria.query.{name}"


def verdict(name: str) -> str:
    """A question about a verdict."""
    return f"cypria.verdict.{name}"


def metric(partition: int) -> str:
    """Facts of one partition."""
    return f"cypria.metric.{partition}"


def window(partition: int) -> str:
    """Aggregates of one partition."""
    return f"cypria.window.{partition}"


def lease(test_id: str) -> str:
    """The lease of one test's canary."""
    return f"cypria.lease.{test_id}"


def peer(router: str) -> str:
    """One router lives; its own id, not a name."""
    return f"cypria.peer.{router}"


def rollback(test_id: str) -> str:
    """Rollback requested for one test."""
    return f"cypria.rollback.{test_id}"


def event(event_type: str) -> str:
    """A durable event; event_type is dotted, such as ``test.started``."""
    return f"cypria.event.{event_type}"


def alert(level: str) -> str:
    """Alerts of one level, in lower case."""
    return f"cypria.alert.{level.lower()}"


def alerts(verb: str) -> str:
    """Work of the alerts service; verb is ``test``, ``redrive``, or one of integrations (``integrations-test`` ...)."""
    return f"cypria.alerts.{verb}"


def integration_event(kind: str) -> str:
    """What integrations are told: ``started``, ``rolled_back``, ``decided``, or ``forwarded`` for an event as it is."""
    return f"cypria.integration.event.{kind}"


def integration_window(seconds: int) -> str:
    """Figures of tests by window of this length, for integrations."""
    return f"cypria.integration.window.{seconds}"


def audit(service: str) -> str:
    """Audit records of one service."""
    return f"cypria.audit.{service}"


def dlq(stream: str, consumer: str) -> str:
    """What a consumer of a stream could not process."""
    return f"cypria.dlq.{stream}.{consumer}"


def pattern_of(subject: str) -> str:
    """The pattern a concrete subject falls under, for metric labels of bounded cardinality."""
    head = ".".join(subject.split(".")[:2])
    return next((p for p in PATTERNS if p.startswith(head + ".")), "other")
