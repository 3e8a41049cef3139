"""What nobody who means well sends over the bus: payloads, headers and reply subjects, as each of its users."""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import nats

from infra.nats import users
from schemas import streams, subjects
from services.router.control.verbs import BY_TOKEN

MIB = 1 << 20
NAMES = (
    "test_id", "tests", "model", "model_a", "model_b", "name", "names", "id", "data", "type", "state", "counter", "holder", "at_ms", "partition",
    "facts", "cells", "limit", "offset", "cursor", "unit", "level", "incident", "order", "share_bp", "traffic_split_percent", "router", "worker",
    "generation", "version", "specversion", "source", "time", "subject", "models", "key", "role", "window_ms", "start_ms", "token", "score",
)  # fmt: skip
WRONG: tuple[Any, ...] = (None, True, -1, 10**400, 1e308, "", "\u0000", "x" * 10_000, [], [[]], {}, {"a": {"b": []}}, "../../etc/passwd", "\ud800")


def concrete(pattern: str, worker: str) -> Iterator[str]:
    """Subjects below a pattern: those that somebody answers, and one that nobody does."""
    last: dict[str, tuple[str, ...]] = {
        subjects.REQUEST: ("chat", "completions", "embeddings"),
        subjects.CONTROL: tuple(BY_TOKEN),
        subjects.MODELS: ("list", "load", "unload", "plan"),
        subjects.QUERY: ("totals", "history", "test", "audit", "audit_verify", "windows", "unit", "alerts"),
        subjects.VERDICT: ("status", "final", "monitoring", "record", "evidence"),
        subjects.ALERTS: ("test", "redrive", "integrations", "integrations-test", "integrations-redrive"),
        subjects.ALERT: ("info", "warning", "critical", "emergency"),
        subjects.METRIC: ("0", "7"),
        subjects.WINDOW: ("0", "7"),
        subjects.FLOW: (worker,),
        "cypria.event.test.*": ("started", "ended", "changed"),
        "cypria.event.verdict.*": ("action", "decided"),
    }
    for token in (*last.get(pattern, ()), "nobody"):
        head = pattern.removesuffix(">").removesuffix("*")
        if head == pattern:
            yield pattern
            return
        yield head + {subjects.INFER: f"stable.{worker}", subjects.HEARTBEAT: "stable.wffffffff"}.get(pattern, token)


def payloads(pick: random.Random, *, large: bool) -> Iterator[bytes]:
    """Nothing, no JSON, JSON of another kind, wrong types, too much, too deep."""
    yield from (b"", b" ", b"\x00", b"\xff\xfe\xfd", b"{", b"null", b"true", b"[]", b"7", b'"text"', b"NaN", b"{}", b"[{}]", b'{"": ""}')
    yield from (b'{"test_id": "\\ud800"}', b'{"a":1,"a":2}', b'{"test_id": 1e999}', b'{"n": ' + b"9" * 5_000 + b"}")
    yield from (b"[" * 20_000, b'{"data":' * 5_000, b"[" * 2_000 + b"]" * 2_000, pick.randbytes(300))
    for wrong in WRONG:
        body = dict.fromkeys(NAMES, wrong)
        yield json.dumps(body).encode()
        yield json.dumps({"specversion": "1.0", "id": f"x{pick.random()}", "source": "x", "type": "x", "time": "2026-01-01T00:00:00Z", "data": body}).encode()
    yield (30).to_bytes(4, "big") + b'{"id": 1, "router": []}' + b"rest"
    if large:
        yield b'{"name": "' + b"x" * MIB + b'"}'


HEADERS: tuple[dict[str, str] | None, ...] = (
    None, {}, {"Authorization": "Bearer " + "x" * 5000}, {"Authorization": "\u00fc"}, {"Content-Type": "image/png", "Content-Encoding": "gzip"},
    {"Nats-Msg-Id": "x" * 300, "Cypria-Status": "nine", "Cypria-Error": "1", "traceparent": "00-zz"}, {"correlation_id": "\u0000", "reply_to": "x"},
)  # fmt: skip
RAW_HEADERS = (b"NATS/1.0\r\n\r\n", b"NATS/1.0 999\r\n\r\n", b"NATS/1.0\r\nno colon\r\n\r\n", b"NATS/1.0\r\n: empty\r\n\r\n", b"NATS/1.0\r\nA: \xff\xfe\r\n\r\n",
               b"NATS/1.0\r\nA:1\r\nA:2\r\na : 3\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"\x00\r\n\r\n")  # fmt: skip


class Users:
    """Connections as every user of a running system's bus."""

    def __init__(self, data_dir: Path) -> None:
        folder = data_dir / "nats"
        self.passwords: dict[str, str] = json.loads((folder / "passwords.json").read_text())
        lines = (folder / "nats.conf").read_text().splitlines()
        self.port = int(next(line.split()[1] for line in lines if line.startswith("port:")))

    @contextlib.asynccontextmanager
    async def connected(self, user: str) -> AsyncIterator[nats.NATS]:
        async def ignore(_exc: Exception) -> None:
            """What the server refuses is looked at elsewhere."""

        nc = await nats.connect(
            f"nats://127.0.0.1:{self.port}", user=user, password=self.passwords[user], inbox_prefix=f"_INBOX.{user}", error_cb=ignore
        )
        try:
            yield nc
        finally:
            await nc.close()

    async def raw(self, user: str, subject: str, headers: bytes, payload: bytes = b"{}") -> None:
        """One message whose headers no client would write."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            connect = {"user": user, "pass": self.passwords[user], "headers": True, "verbose": False, "pedantic": False}
            writer.write(f"CONNECT {json.dumps(connect)}\r\n".encode())
            reply = f"_INBOX.{user}.raw"
            writer.write(f"HPUB {subject} {reply} {len(headers)} {len(headers) + len(payload)}\r\n".encode() + headers + payload + b"\r\nPING\r\n")
            await writer.drain()
            async with asyncio.timeout(60):
                while await reader.readline() not in {b"PONG\r\n", b""}:
                    pass
        finally:
            writer.close()


def published(user: str, worker: str) -> list[str]:
    """Every subject of the product's own that a user may publish to, and every bucket's key."""
    found = [s for pattern in users.permissions(user).publish if pattern.startswith("cypria.") for s in concrete(pattern, worker)]
    found += [f"$KV.{bucket.name}.noise" for bucket in streams.BUCKETS if user in bucket.writers]
    return list(dict.fromkeys(found))


def replies(user: str) -> tuple[str, ...]:
    """Reply subjects: none, a proper one, and where the answerer may write but the asker may not."""
    return (
        "", f"_INBOX.{user}.noise", "cypria.window.nobody", "cypria.event.verdict.action", "cypria.heartbeat.stable.wdeadbeef", "cypria.control.stop",
        "$KV.experiments.stable", "$KV.alert_state.noise", "_INBOX.router.noise", "$JS.ACK.ALERTS.x.1.1.1.1.0", "$JS.API.STREAM.DELETE.EVENTS",
    )  # fmt: skip


async def shout(every: Users, user: str, worker: str, key: str, pick: random.Random, *, rounds: int = 1) -> int:
    """Send all of that as one user; how many messages it was."""
    sent = 0
    async with every.connected(user) as nc:
        for _ in range(rounds):
            for subject in published(user, worker):
                for payload in payloads(pick, large=subject.endswith((".start", ".chat", ".0", ".totals"))):
                    headers = pick.choice((*HEADERS, {"Authorization": f"Bearer {key}"}))
                    with contextlib.suppress(ValueError, nats.errors.Error):  # what the client itself would not write
                        await nc.publish(subject, payload, reply=pick.choice(replies(user)), headers=headers)
                        sent += 1
                await nc.flush(30)
    for subject in published(user, worker):
        if subject.split(".")[-1] in {"status", "chat", "totals", "monitoring", "list", "test", "0", "nobody", "noise"}:
            await every.raw(user, subject, pick.choice(RAW_HEADERS))
            sent += 1
    return sent
