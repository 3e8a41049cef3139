"""Users of the bus and their permissions, derived from what `schemas.streams` declares.

Every service has a user of its own, outside callers have one, and `provision` has one. A user publishes only
the subjects that are its own, and subscribes only to those and to its own inbox prefix `_INBOX.<user>`.

Streams live in an account of their own, with `provision` alone, and everybody else in another one that imports them. A
server answers to whatever reply subject the asker named, whatever the asker may publish: in one account with the
streams, that answer could be stored as a message of any stream or taken for an order to delete one. Over there it is
neither.
"""

from collections.abc import Callable
from dataclasses import dataclass

from schemas import streams, subjects

CALLER = "caller"
PROVISION = "provision"
USERS = (*streams.SERVICES, CALLER, PROVISION)
STREAMS_ACCOUNT = "STREAMS"
SERVICES_ACCOUNT = "SERVICES"


@dataclass(frozen=True)
class Permissions:
    """Subjects (NATS patterns) that a user may publish to and subscribe to; everything else is refused.

    ``never`` is taken out of what it may subscribe to.
    """

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    never: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tls:
    """PEM files of a server; with ``ca_file`` it takes only clients with a certificate of that authority."""

    cert_file: str
    key_file: str
    ca_file: str | None = None


LIMITS = (f"max_payload: {12 << 20}", f"max_pending: {256 << 20}", 'ping_interval: "20s"', 'write_deadline: "10s"')
"""Of every server: bodies of 10 MiB pass."""

_PUBLISH: dict[str, tuple[str, ...]] = {
    "router": (
        subjects.INFER, subjects.FLOW, subjects.MODELS, subjects.QUERY, subjects.VERDICT, subjects.METRIC,
        subjects.ROLLBACK, subjects.PEER, "cypria.event.test.*", "cypria.event.monitoring.*",
        "cypria.event.model.registered", subjects.ALERT, subjects.ALERTS,
        "cypria.audit.router",
    ),
    "inference": (
        subjects.HEARTBEAT, "cypria.event.model.state", "cypria.event.model.progress", "cypria.audit.inference",
        subjects.ALERT,
    ),
    "metrics": (subjects.WINDOW, subjects.ALERT),
    "monitor": (subjects.LEASE, subjects.ROLLBACK, "cypria.event.verdict.*", subjects.ALERT, subjects.QUERY),
    "alerts": (
        subjects.ALERT, subjects.INTEGRATION, "cypria.dlq.ALERTS.alerts.*", "cypria.dlq.INTEGRATIONS.alerts.*",
    ),
    CALLER: (subjects.REQUEST, subjects.CONTROL),
}  # fmt: skip

_SUBSCRIBE: dict[str, tuple[str, ...]] = {
    "router": (
        subjects.REQUEST, subjects.CONTROL, subjects.HEARTBEAT, subjects.LEASE, subjects.PEER, subjects.ROLLBACK,
        subjects.EVENT, subjects.ALERT, subjects.WINDOW,
    ),
    "inference": (subjects.INFER, subjects.FLOW, subjects.MODELS),
    "metrics": (subjects.QUERY,),
    "monitor": (subjects.VERDICT,),
    "alerts": ("cypria.query.alerts", subjects.ALERTS),
    CALLER: (),
}  # fmt: skip

_NEVER: dict[str, tuple[str, ...]] = {"metrics": ("cypria.query.alerts",)}
"""Holes in a service's patterns: questions about alerts are the alerts service's."""

_DURABLES: dict[str, tuple[str, ...]] = {
    "alerts": (streams.ALERTS.name, streams.EVENTS.name, streams.INTEGRATIONS.name)
}
"""Streams that a service consumes by durable consumers with acknowledgements; other readers keep their own place."""

_ERASES: dict[str, tuple[str, ...]] = {
    "router": (f"KV_{streams.SALTS.name}", f"KV_{streams.ERASURES.name}"),
    "metrics": (streams.METRICS.name,),
}
"""Streams from which a service may delete a single message: salts and tombstones of tests that are over, and fact
batches, already folded, of a unit that was erased."""

_ANSWERS: dict[str, tuple[str, ...]] = {
    "router": (CALLER,),
    "inference": ("router",),
    "metrics": ("router", "monitor"),
    "monitor": ("router",),
    "alerts": ("router",),
}
"""Whose inboxes a service replies to."""


def permissions(user: str) -> Permissions:
    """What a user may do. Raises KeyError for an unknown user."""
    own_inbox = f"_INBOX.{user}.>"
    if user == PROVISION:
        # the second is how the pieces of a backup come and go (`infra.nats.backup`)
        return Permissions(publish=("$JS.API.>", "$JS.SNAPSHOT.>"), subscribe=(own_inbox,))
    publish = list(_PUBLISH[user])
    publish += [f"_INBOX.{asker}.>" for asker in _ANSWERS.get(user, ())]
    if user in streams.SERVICES:
        publish.append(f"cypria.dlq.*.{user}")
        for stream in streams.STREAMS:
            if user in stream.readers:
                publish += _reading(stream.name)
            if stream.name in _DURABLES.get(user, ()):
                publish += [f"$JS.API.CONSUMER.LIST.{stream.name}", f"$JS.ACK.{stream.name}.>"]
        for bucket in streams.BUCKETS:
            if user in bucket.readers or user in bucket.writers:
                publish += _reading(f"KV_{bucket.name}")
            if user in bucket.writers:
                publish.append(f"$KV.{bucket.name}.>")
    publish += [f"$JS.API.STREAM.MSG.DELETE.{stream}" for stream in _ERASES.get(user, ())]
    return Permissions(
        publish=tuple(dict.fromkeys(publish)),
        subscribe=(own_inbox, *_SUBSCRIBE[user]),
        never=_NEVER.get(user, ()),
    )


def _reading(stream: str) -> list[str]:
    return [
        f"$JS.API.STREAM.INFO.{stream}",
        f"$JS.API.CONSUMER.CREATE.{stream}",
        f"$JS.API.CONSUMER.CREATE.{stream}.>",
        f"$JS.API.CONSUMER.INFO.{stream}.>",
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.>",
        f"$JS.API.CONSUMER.DELETE.{stream}.>",
        f"$JS.API.STREAM.MSG.GET.{stream}",
        f"$JS.API.DIRECT.GET.{stream}",
        f"$JS.API.DIRECT.GET.{stream}.>",
        f"$JS.FC.{stream}.>",
    ]


def server_config(
    *, host: str, port: int, store_dir: str, passwords: dict[str, str], sync_always: bool,
    tls: Tls | None = None,
) -> str:  # fmt: skip
    """A nats-server configuration file with JetStream and all users; ``passwords`` are plain or bcrypt."""
    lines = [
        f"host: {_quote(host)}",
        f"port: {port}",
        "server_name: cypria",
        *LIMITS,
        "jetstream {",
        f"  store_dir: {_quote(store_dir)}",
        *(["  sync_interval: always"] if sync_always else []),
        "}",
        *(_tls(tls) if tls else []),
        *authorization(lambda user: _quote(passwords[user])),
    ]
    return "\n".join(lines) + "\n"


def variable(user: str) -> str:
    """How a configuration refers to a user's password where it does not hold it: `$CYPRIA_ROUTER` and so on."""
    return f"$CYPRIA_{user.upper()}"


def authorization(password: Callable[[str], str]) -> list[str]:
    """The lines of a configuration with both accounts and all users; ``password`` gives what stands for a user's."""
    return [
        "authorization { timeout: 3 }",
        "accounts {",
        f"  {STREAMS_ACCOUNT} {{",
        "    jetstream: enabled",
        "    exports: [",
        *(f"      {{ {what} }}" for what in _offered()),
        "    ]",
        "    users: [",
        *_user(PROVISION, password(PROVISION)),
        "    ]",
        "  }",
        f"  {SERVICES_ACCOUNT} {{",
        "    imports: [",
        *(f"      {{ {what} }}" for what in _taken()),
        "    ]",
        "    users: [",
        *(line for user in USERS if user != PROVISION for line in _user(user, password(user))),
        "    ]",
        "  }",
        "}",
    ]


_API = "$JS.API.>"
"""All of it: what one account takes from another replaces the server's own, which knows of no streams there."""
_DELIVERIES = "_INBOX.>"
"""Where consumers that push, those of watches, deliver to."""


def _into_streams() -> list[str]:
    """What services publish into the account of the streams."""
    stored = [subject for stream in streams.STREAMS for subject in stream.subjects]
    return ["$JS.ACK.>", "$JS.FC.>", *stored, *(f"$KV.{bucket.name}.>" for bucket in streams.BUCKETS)]


def _offered() -> list[str]:
    into = [f"service: {_quote(subject)}" for subject in _into_streams()]
    return [f"service: {_quote(_API)}, response_type: stream", *into, f"stream: {_quote(_DELIVERIES)}"]


def _taken() -> list[str]:
    kinds = [*(("service", subject) for subject in (_API, *_into_streams())), ("stream", _DELIVERIES)]
    return [f"{kind}: {{ account: {STREAMS_ACCOUNT}, subject: {_quote(subject)} }}" for kind, subject in kinds]


def _user(name: str, password: str) -> list[str]:
    allowed = permissions(name)
    publish, subscribe, never = (
        ", ".join(map(_quote, some)) for some in (allowed.publish, allowed.subscribe, allowed.never)
    )
    return [
        f"      {{ user: {name}, password: {password}, permissions: {{",
        f"          publish: {{ allow: [{publish}] }},",
        f"          subscribe: {{ allow: [{subscribe}], deny: [{never}] }}",
        "      } }",
    ]


def _tls(tls: Tls) -> list[str]:
    files = {"cert_file": tls.cert_file, "key_file": tls.key_file, **({"ca_file": tls.ca_file} if tls.ca_file else {})}
    verify = ["  verify: true"] if tls.ca_file else []
    return ["tls {", *(f"  {name}: {_quote(path)}" for name, path in files.items()), *verify, "  timeout: 3", "}"]


def _quote(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
