"""Server-sent events: what happens on the bus, one event each, and a comment now and then to keep the line."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from schemas import subjects
from services.router.adapters.nats_feed import Feed, Happening
from services.router.control.live import SNAPSHOT, Live

KEEP_ALIVE_S = 15.0
_WINDOWS = subjects.WINDOW.rstrip("*>")


async def stream(
    feed: Feed, good: Callable[[], bool], live: Live | None = None, keep_alive_s: float = KEEP_ALIVE_S
) -> AsyncIterator[bytes]:
    """Chunks of `text/event-stream`; ends when the router stops, the listener does not keep up, or its key ends.

    ``good``: whether the key that it was opened with is good. With ``live`` how every test stands comes as events
    ``live``, and windows, which they are made of, do not.
    """
    async with contextlib.AsyncExitStack() as stack:
        queue = await stack.enter_async_context(feed.listen(good))
        if live is not None:
            stack.enter_context(live.watched_by(queue))
        yield b": connected\n\n"
        while True:
            try:
                async with asyncio.timeout(keep_alive_s):
                    happening = await queue.get()
            except TimeoutError:
                yield b": keep-alive\n\n"
                continue
            if happening is None:
                return
            if live is not None and happening.subject.startswith(_WINDOWS):
                continue
            chunk = encode(happening)
            if chunk is not None:
                yield chunk
            if live is not None and happening.subject != SNAPSHOT:
                live.hurry()


def encode(happening: Happening) -> bytes | None:
    """One event, or None for what nobody watching needs: unreadable messages and windows in which nothing happened.

    The event's name is ``event``, ``rollback``, ``alert``, ``window`` or ``live``; its data is one line of JSON.
    Windows are shown without unit hashes and bins.
    """
    if happening.subject == SNAPSHOT:
        return b"event: live\ndata: " + happening.data + b"\n\n"
    try:
        data: Any = json.loads(happening.data)
    except (ValueError, RecursionError):
        return None
    name = happening.subject.split(".")[1]
    event_id = data.get("id") if isinstance(data, dict) else None
    if name == "window":
        data = _window(data)
        if data is None:
            return None
    lines = [f"event: {name}"]
    if isinstance(event_id, str) and event_id.isprintable():
        lines.append(f"id: {event_id}")
    lines.append(f"data: {json.dumps(data, separators=(',', ':'))}")
    return ("\n".join(lines) + "\n\n").encode()


def _window(data: Any) -> dict[str, Any] | None:
    cells = data.get("cells") if isinstance(data, dict) else None
    if not cells:
        return None
    shown = ("test", "variant", "share_bp", "admitted", "done", "overdue", "fallback", "outcomes")
    return {
        "partition": data.get("partition"),
        "cells": [
            {
                **{name: cell.get(name) for name in shown},
                "latency_n": cell.get("latency", {}).get("n", 0),
                "latency_total_us": cell.get("latency", {}).get("total", 0),
            }
            for cell in cells
        ],
    }
