"""Alerts, and what could not be processed."""

from typing import Any

from pydantic import Field

from schemas.v1.common import AlertLevel, Message, UnixMs


class Alert(Message):
    """One alert on `cypria.alert.<level>` (data of a CloudEvent).

    ``incident`` is the same for everything that belongs together, across replicas and restarts;
    ``resolved`` ends the incident. Numbers are facts behind the sentence in ``message``.
    """

    incident: str
    level: AlertLevel
    title: str
    message: str
    test_id: str | None = None
    rule: str | None = None
    at_ms: UnixMs
    resolved: bool = False
    value: float | None = None
    bound: float | None = None
    threshold: float | None = None
    n: int | None = None
    tags: dict[str, str] = Field(default_factory=dict)
    numbers: dict[str, float] = Field(default_factory=dict)


class DeadLetter(Message):
    """A message that its consumer could not process, as published on `cypria.dlq.<stream>.<consumer>`."""

    stream: str
    consumer: str
    subject: str
    sequence: int
    reason: str
    deliveries: int = 1
    at_ms: UnixMs
    payload_b64: str = Field(description="the message's bytes, base64")


class AuditRecord(Message):
    """Who did what, when, from where, with what outcome. No bodies, no secrets.

    ``before`` and ``after`` show what the action was about, small and without secrets, as it found and as it left it:
    ``before`` is null where there was nothing or nothing is known of it, ``after`` where nothing was changed.
    ``needs`` is the role that the action wants, ``changes`` whether it is one that changes something.
    """

    at_ms: UnixMs
    actor: str
    role: str
    action: str
    target: str | None = None
    test_id: str | None = None
    source: str = Field(description="salted hash of the peer's address, or 'bus'")
    status: int
    outcome: str
    request_id: str
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    needs: str = ""
    changes: bool = False
