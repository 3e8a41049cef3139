"""The AsyncAPI document of the bus: every subject, what it carries, who may send it, how it is answered."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import yaml

from infra.nats.users import USERS, permissions
from schemas import catalog, streams, subjects
from services.router.control.openapi import ERROR, flat
from services.router.control.verbs import VERBS

RAW = "bytes"
"""What has no JSON Schema: bodies of the engines, and frames of the hot path."""
ERROR_REPLY = "Error"
_SCHEMAS = "#/components/schemas/"


@dataclass(frozen=True, slots=True)
class Channel:
    """One subject. ``carries`` and ``answers`` name schemas; a subject that is answered is a question."""

    name: str
    address: str
    summary: str
    carries: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    parameters: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


_EVENTS = tuple(
    catalog.event_type(kind) for kind in catalog.EVENTS if kind.startswith(("test.", "model.", "monitoring."))
)
_KEY = {"Authorization": "Bearer KEY, as over HTTP", "X-Request-ID": "The caller's own, kept in the answer"}
_QUERIES = {
    "totals": ("TotalsQuery", "TotalsReply"), "history": ("HistoryQuery", "HistoryReply"),
    "test": ("TestQuery", "TestReply"), "audit": ("AuditQuery", "AuditReply"), "alerts": ("AlertsQuery", "AlertsReply"),
    "windows": ("WindowsQuery", "WindowsReply"), "audit_verify": ("AuditVerifyQuery", "AuditVerification"),
    "unit": ("UnitQuery", "UnitReply"),
}  # fmt: skip
_VERDICTS = {
    "status": ("VerdictQuery", "VerdictStatus"), "final": ("FinalVerdictQuery", "FinalVerdict"),
    "monitoring": (RAW, "MonitoringStatus"), "record": ("RecordQuery", "RecordReply"),
    "evidence": ("EvidenceQuery", "EvidenceReply"),
}  # fmt: skip


_ALERTS = {
    "test": (RAW, "AlertTestReply"), "redrive": ("RedriveQuery", "RedriveReply"),
    "integrations": (RAW, "IntegrationsReply"), "integrations-test": ("IntegrationQuery", "IntegrationsTestReply"),
    "integrations-redrive": ("IntegrationQuery", "RedriveReply"),
}  # fmt: skip
_MODELS = {
    "list": ("ModelQuery", RAW), "plan": ("ModelQuery", "ModelPlan"), "load": ("ModelQuery", RAW),
    "unload": ("ModelQuery", RAW),
}  # fmt: skip
_ASKED: dict[str, tuple[Callable[[str], str], str, dict[str, tuple[str, str]]]] = {
    "models": (subjects.models, "Asked of the workers", _MODELS),
    "query": (subjects.query, "Asked about the past", _QUERIES),
    "verdict": (subjects.verdict, "Asked about a verdict", _VERDICTS),
    "alerts": (subjects.alerts, "Asked of destinations and integrations", _ALERTS),
}
_PARAMETERS = {
    "model": "The model's name as one token", "worker": "The worker's id", "router": "The router's id",
    "partition": "0 to 7", "test_id": "The test",
    "type": "Dotted, such as test.started", "level": "info, warning, critical or emergency", "service": "Who tells",
    "stream": "Where it came from", "consumer": "Who could not",
    "told": "event.started, event.rolled_back, event.decided, event.forwarded, or window.SECONDS",
}  # fmt: skip
_SENT: tuple[tuple[str, tuple[str, ...], str, tuple[str, ...]], ...] = (
    (subjects.INFER, ("model", "worker"), "A request for one worker, in frames", (RAW,)),
    (subjects.HEARTBEAT, ("model", "worker"), "A worker's load and state, every 250 ms", ("Heartbeat",)),
    (subjects.FLOW, ("worker",), "Credit, keep-alive and cancel", ("Flow",)),
    (subjects.METRIC, ("partition",), "Facts about finished requests, in batches", ("FactBatch",)),
    (subjects.WINDOW, ("partition",), "Aggregates with their watermark, one a second", ("Window",)),
    (subjects.LEASE, ("test_id",), "The canary's lease, every second", ("Lease",)),
    (subjects.PEER, ("router",), "A router lives, every second", ("RouterBeat",)),
    (subjects.ROLLBACK, ("test_id",), "A rollback is asked for", (catalog.event_type("rollback.requested"),)),
    (subjects.EVENT, ("type",), "What happened to tests, models and the monitoring", _EVENTS),
    (subjects.ALERT, ("level",), "Alerts", (catalog.event_type("alert"),)),
    (subjects.AUDIT, ("service",), "Who did what", (catalog.event_type("audit"),)),
    (subjects.INTEGRATION, ("told",), "What integrations have yet to be told",
     tuple(catalog.event_type(kind) for kind in catalog.EVENTS if kind.startswith("integration."))),
    (subjects.DLQ, ("stream", "consumer"), "What could not be processed, with the reason", ("DeadLetter",)),
)


def channels() -> list[Channel]:
    """Every subject of `schemas.subjects`, those of questions one by one."""
    found = [
        Channel(f"request.{kind}", subjects.request(kind), f"Inference: the body of {path}, streamed if it says so",
                (RAW,), (RAW, ERROR_REPLY),
                headers={**_KEY, "X-Session-ID": "The unit of assignment, as over HTTP"})
        for kind, path in (("chat", "/v1/chat/completions"), ("completions", "/v1/completions"),
                           ("embeddings", "/v1/embeddings"))
    ]  # fmt: skip
    for verb in VERBS:
        answer = verb.gives.__name__ if verb.gives else RAW
        found.append(
            Channel(f"control.{verb.name}", subjects.control(verb.name), f"{verb.summary} (role: {verb.role.label})",
                    (verb.takes.__name__,), (answer, ERROR_REPLY), headers=_KEY)
        )  # fmt: skip
    found += [
        Channel(f"{family}.{name}", address(name), summary, (asked,), (told, "QueryError"))
        for family, (address, summary, questions) in _ASKED.items()
        for name, (asked, told) in questions.items()
    ]
    for pattern, parameters, summary, carries in _SENT:
        name = pattern.split(".")[1]
        answers = (RAW,) if pattern == subjects.INFER else ()
        address = ".".join(["cypria", name, *(f"{{{one}}}" for one in parameters)])
        described = {one: _PARAMETERS[one] for one in parameters}
        found.append(Channel(name, address, summary, carries, answers, described))
    return found


@cache
def text() -> str:
    """The document as YAML; made at the first call."""
    return yaml.safe_dump(document(), sort_keys=False, allow_unicode=True, width=120)


def document() -> dict[str, Any]:
    """AsyncAPI 3.0.0."""
    found = channels()
    messages = {name: _message(name) for one in found for name in (*one.carries, *one.answers)}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Cypria on the bus", "version": "1",
            "description": "Outside callers connect as the user `caller`, may publish to `cypria.request.*` and "
            "`cypria.control.*` alone, and are answered below `_INBOX.caller.`. The rest is between services.",
        },
        "defaultContentType": "application/json",
        "servers": {"nats": {"host": "127.0.0.1:4222", "protocol": "nats", "security": [{"type": "userPassword"}]}},
        "channels": {
            **{one.name: _channel(one) for one in found},
            "inbox": {"address": None, "description": "The reply subject of a question.",
                      "messages": {name: _ref("messages", name) for one in found for name in one.answers}},
        },
        "operations": {one.name: _operation(one) for one in found},
        "components": {"messages": messages, "schemas": _schemas(messages)},
    }  # fmt: skip


def _channel(one: Channel) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "address": one.address, "summary": one.summary, "messages": {n: _ref("messages", n) for n in one.carries},
    }  # fmt: skip
    if one.parameters:
        shown["parameters"] = {name: {"description": text} for name, text in one.parameters.items()}
    concrete = one.address.split("{")[0]
    kept = next((s for s in streams.STREAMS if any(concrete.startswith(p.rstrip("*>")) for p in s.subjects)), None)
    shown["description"] = f"Sent by: {', '.join(_senders(one.address))}." + (
        f" Kept in the stream {kept.name}." if kept else ""
    )
    return shown


def _operation(one: Channel) -> dict[str, Any]:
    """Questions are received and answered; everything else is sent."""
    here = f"#/channels/{one.name}"
    shown: dict[str, Any] = {
        "action": "receive" if one.answers else "send", "channel": {"$ref": here}, "summary": one.summary,
        "messages": [{"$ref": f"{here}/messages/{name}"} for name in one.carries],
    }  # fmt: skip
    if one.answers:
        shown["reply"] = {
            "address": {"location": "$message.header#/reply"}, "channel": {"$ref": "#/channels/inbox"},
            "messages": [{"$ref": f"#/channels/inbox/messages/{name}"} for name in one.answers],
        }  # fmt: skip
    if one.headers:
        shown["description"] = "Headers: " + "; ".join(f"`{name}`: {text}" for name, text in one.headers.items()) + "."
    return shown


def _message(name: str) -> dict[str, Any]:
    if name == RAW:
        return {"name": name, "summary": "JSON or frames as they are; not looked into"}
    return {"name": name, "contentType": "application/json", "payload": {"$ref": f"{_SCHEMAS}{name}"}}


def _schemas(messages: dict[str, Any]) -> dict[str, Any]:
    """The schemas of the messages and of what they are made of; definitions stand beside them instead of inside."""
    known = catalog.json_schemas()
    found: dict[str, Any] = {ERROR_REPLY: ERROR}
    found |= {kind.__name__: flat(kind) for verb in VERBS for kind in (verb.takes, verb.gives)
              if kind and kind.__name__ not in known}  # fmt: skip
    for name in messages:
        if name in known:
            schema = {key: value for key, value in known[name].items() if key not in {"$schema", "$id"}}
            inside = schema.pop("$defs", {})
            found[name] = _lifted(schema)
            for inner, definition in inside.items():
                found.setdefault(inner, _lifted(definition))
    return found


def _lifted(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: v.replace("#/$defs/", _SCHEMAS) if k == "$ref" else _lifted(v) for k, v in node.items()}
    return [_lifted(item) for item in node] if isinstance(node, list) else node


def _ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


def _senders(address: str) -> list[str]:
    """Users of the bus that may publish there."""
    parts = ["*" if part.startswith("{") else part for part in address.split(".")]
    return [
        user for user in USERS if any(_overlaps(parts, pattern.split(".")) for pattern in permissions(user).publish)
    ]


def _overlaps(parts: list[str], pattern: list[str]) -> bool:
    """Whether a pattern of subjects allows any of an address; a last parameter may stand for several tokens."""
    for index, allowed in enumerate(pattern):
        if allowed == ">":
            return len(parts) > index
        if index >= len(parts):
            return parts[-1] == "*"
        if allowed != parts[index] and "*" not in {allowed, parts[index]}:
            return False
    return len(parts) == len(pattern)
