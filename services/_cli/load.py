"""An open-loop traffic generator: requests leave on schedule whatever the answers take."""

import asyncio
import itertools
import json
import random
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from services._cli import api, show
from services._cli.scenarios import STEADY, Shape
from services._runtime.clock import monotonic

PROMPTS = (
    "Tell me a short story about a dog.", "What is rain?", "Tell me a story about a fox.",
    "How do I make tea?", "How do I make bread?", "Say something kind.",
)  # fmt: skip


@dataclass
class Tally:
    """What clients saw, by variant (``-`` when a response named none)."""

    sent: int = 0
    finished: int = 0
    in_flight: int = 0
    failed: int = 0
    by_variant: Counter[str] = field(default_factory=Counter)
    by_status: Counter[str] = field(default_factory=Counter)
    latency_ms: dict[str, list[float]] = field(default_factory=dict)
    last_error: str = ""

    def record(self, variant: str, status: str, seconds: float, *, ok: bool) -> None:
        """Count one answer."""
        self.finished += 1
        self.by_variant[variant] += 1
        self.by_status[status] += 1
        self.failed += not ok
        self.latency_ms.setdefault(variant, []).append(seconds * 1000)


@dataclass(frozen=True)
class Load:
    """What to send: ``rate`` requests a second to ``url``, as ``users`` different users (0: none named)."""

    url: str
    key: str
    model: str
    rate: float
    stream: bool = False
    max_tokens: int = 16
    users: int = 0
    timeout_s: float = 60.0
    seed: int = 1
    tls: ssl.SSLContext | bool = True
    shape: Shape = STEADY

    def schedule(self) -> Iterator[float]:
        """When each request is due, in seconds after the begin."""
        if self.shape.kind == "steady":
            yield from (index / self.rate for index in itertools.count())
        due = 0.0
        while True:
            yield due
            due += 1 / (self.rate * self.shape.factor(due))


async def drive(
    load: Load, *, seconds: float | None = None, requests: int | None = None, tally: Tally | None = None,
    stop: Callable[[], bool] | None = None,
) -> Tally:  # fmt: skip
    """Send until ``seconds``, ``requests`` or ``stop`` end it, then wait for what is in flight."""
    tally = tally or Tally()
    rng = random.Random(load.seed)  # noqa: S311 - a load, not a secret
    connector = aiohttp.TCPConnector(limit=0, ssl=load.tls)
    timeout = aiohttp.ClientTimeout(total=load.timeout_s)
    headers = {"Authorization": f"Bearer {load.key}"}
    begin = monotonic()
    tasks: set[asyncio.Task[None]] = set()
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
        for index, due in enumerate(load.schedule()):
            if (requests is not None and index >= requests) or (seconds is not None and due >= seconds):
                break
            if stop is not None and stop():
                break
            await asyncio.sleep(max(0.0, begin + due - monotonic()))
            task = asyncio.create_task(_one(session, load, _body(load, rng, due), tally))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.gather(*tasks)
    return tally


async def shown(load: Load, seconds: float) -> Tally:
    """Send for so many seconds, with the figures so far in a line on the terminal."""
    tally = Tally()
    run_load = asyncio.create_task(drive(load, seconds=seconds, tally=tally))
    with show.console.status("") as line:
        while not run_load.done():
            await asyncio.wait({run_load}, timeout=0.5)
            line.update(
                f"sent {tally.sent}  finished {tally.finished}  failed {tally.failed}  {dict(tally.by_variant)}"
            )
    return await run_load


def _body(load: Load, rng: random.Random, due: float) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": load.model,
        "messages": [{"role": "user", "content": " ".join([rng.choice(PROMPTS)] * load.shape.repeats(due))}],
        "max_tokens": load.max_tokens,
        "stream": load.stream,
    }
    if load.users:
        body["user"] = f"user-{rng.randrange(load.users)}"
    return body


async def _one(session: aiohttp.ClientSession, load: Load, body: dict[str, Any], tally: Tally) -> None:
    tally.sent += 1
    tally.in_flight += 1
    begin = monotonic()
    variant, status, ok = "-", "none", False
    try:
        # A redirect is no answer: following it would count what somebody else says, such as a page to log in.
        async with session.post(f"{load.url}/v1/chat/completions", json=body, allow_redirects=False) as response:
            variant = response.headers.get("X-AB-Test-Variant", "-")
            payload = await response.read()
            status = str(response.status)
            answer = _is_answer(response.content_type, payload, stream=load.stream)
            ok = response.status == 200 and answer
            if not ok:
                tally.last_error = payload[:300].decode("utf-8", "replace")
            if response.status == 200 and not answer:
                tally.last_error = f"HTTP 200, but no completion ({response.content_type}): {tally.last_error}"
    except (aiohttp.ClientError, TimeoutError, OSError) as exc:
        status = type(exc).__name__
        tally.last_error = api.explained(exc)[:300]
    finally:
        tally.in_flight -= 1
    tally.record(variant, status, monotonic() - begin, ok=ok)


def _is_answer(media: str, payload: bytes, *, stream: bool) -> bool:
    """Whether it is a completion: not whatever else somebody answers with 200."""
    if stream:
        return media == "text/event-stream" and b"data: [DONE]" in payload
    try:
        return bool(json.loads(payload)["choices"])
    except (ValueError, RecursionError, TypeError, KeyError):
        return False
