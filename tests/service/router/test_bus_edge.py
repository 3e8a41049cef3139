"""Inference over `cypria.request.*`: the same as over HTTP, marked by headers."""

import asyncio
import json
from typing import Any

import nats
from nats.aio.msg import Msg

from tests.harness import eventually
from tests.service.router.rig import Rig, chat


async def ask(nc: nats.NATS, kind: str, body: bytes, **headers: str) -> list[Msg]:
    """All messages of an answer, the last one marked."""
    inbox = nc.new_inbox()
    sub = await nc.subscribe(inbox)
    await nc.publish(
        f"cypria.request.{kind}", body, reply=inbox, headers={"Authorization": "Bearer client-key", **headers}
    )
    found = []
    async with asyncio.timeout(20):
        while True:
            msg = await sub.next_msg(timeout=20)
            found.append(msg)
            if (msg.headers or {}).get("Cypria-Final") == "1":
                await sub.unsubscribe()
                return found


def dumped(**fields: Any) -> bytes:
    return json.dumps(chat(**fields)).encode()


async def test_whole_and_streamed_answers(rig: Rig) -> None:
    await rig.worker("stable")
    nc = await rig.nats.connect("caller")
    try:
        (whole,) = await ask(nc, "chat", dumped(), **{"X-Request-ID": "mine"})
        assert whole.headers["Cypria-Status"] == "200"
        assert whole.headers["X-Request-ID"] == "mine"
        assert json.loads(whole.data)["choices"]
        pieces = await ask(nc, "completions", dumped(stream=True))
        assert len(pieces) > 1
        assert b"".join(piece.data for piece in pieces).count(b"data: ") == 5
        assert all("Cypria-Final" not in piece.headers for piece in pieces[:-1])
        large = await ask(nc, "embeddings", dumped(mode="big:1000000"))
        assert b"".join(piece.data for piece in large) == b"x" * 1_000_000
        assert max(len(piece.data) for piece in large) <= 256 << 10
    finally:
        await nc.close()


async def test_refusals_and_assignment_are_those_of_http(rig: Rig) -> None:
    await rig.worker("stable")
    await rig.worker("canary")
    test_id = await rig.start_test(traffic_split_percent=100)
    nc = await rig.nats.connect("caller")
    try:
        (no_key,) = await ask(nc, "chat", dumped(), Authorization="Bearer nobody")
        assert no_key.headers["Cypria-Status"] == "401"
        (bad,) = await ask(nc, "chat", b"{")
        assert (bad.headers["Cypria-Status"], json.loads(bad.data)["error"]["code"]) == ("400", "invalid_json")
        (unknown,) = await ask(nc, "songs", dumped())
        assert unknown.headers["Cypria-Status"] == "404"
        (assigned,) = await ask(nc, "chat", dumped(), **{"X-Session-ID": "s"})
        assert assigned.headers["X-AB-Test-ID"] == test_id
        assert assigned.headers["X-AB-Test-Variant"] == "b"
        assert assigned.headers["X-AB-Feedback-Token"]
        (fact,) = await rig.facts()
        assert fact.variant == "b"
    finally:
        await nc.close()


async def test_a_request_without_a_reply_subject_reaches_nobody(rig: Rig) -> None:
    worker = await rig.worker("stable")
    nc = await rig.nats.connect("caller")
    try:
        await nc.publish("cypria.request.chat", dumped(), headers={"Authorization": "Bearer client-key"})
        (answer,) = await ask(nc, "chat", dumped())
        assert answer.headers["Cypria-Status"] == "200"
        await eventually(lambda: len(worker.bodies) == 1)
    finally:
        await nc.close()


async def test_an_answer_goes_to_the_callers_inbox_and_nowhere_else(rig: Rig) -> None:
    """A reply subject is the caller's word; the router, who publishes there, may write where a caller may not."""
    worker = await rig.worker("stable")
    nc, watcher = await rig.nats.connect("caller"), await rig.nats.connect("router")
    try:
        heard = await watcher.subscribe("cypria.rollback.*")
        await watcher.flush()
        key = {"Authorization": "Bearer client-key"}
        for reply in ("cypria.rollback.x", "cypria.metric.0", "$KV.experiments.stable", "_INBOX.router.x", "_INBOX.callers.x", ""):
            await nc.publish("cypria.request.chat", dumped(), reply=reply, headers=key)
            await nc.publish("cypria.request.chat", dumped(), reply=reply)  # refusals are answers as well
        (answer,) = await ask(nc, "chat", dumped())
        assert answer.headers["Cypria-Status"] == "200"
        assert len(worker.bodies) == 1
        await watcher.flush()
        assert heard.pending_msgs == 0
    finally:
        await nc.close()
        await watcher.close()
