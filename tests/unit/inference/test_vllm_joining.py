"""How pieces of a stream are joined on their way out of vLLM's process: over a real pair of sockets."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from services.inference.vllm_host import frames
from services.inference.vllm_host.calls import Call
from services.inference.vllm_host.host import Link

Send = Callable[[dict[str, Any]], Awaitable[None]]
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
JOIN_S = 0.2


def piece(text: str) -> dict[str, Any]:
    return {"type": "http.response.body", "body": text.encode(), "more_body": True}


class Loose(Link):
    """A link whose end is not the end of its process."""

    def connection_lost(self, _exc: Exception | None) -> None:
        """Nothing."""


async def frames_of(
    app: Callable[[Send], Awaitable[None]], join_s: float, seen: Callable[[list[str]], None] = lambda _: None
) -> list[tuple[int, bytes]]:
    """What the worker gets of one request that ``app`` answers: (kind, payload); ``seen`` gets the pieces so far."""
    ours, theirs = socket.socketpair()
    link = Loose(SimpleNamespace(received=None), join_s)  # type: ignore[arg-type]
    transport, _ = await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=theirs)
    reader, writer = await asyncio.open_unix_connection(sock=ours)

    async def asgi(_scope: Any, _receive: Any, send: Send) -> None:
        await send(START)
        await app(send)

    calls: dict[int, Call] = {}
    Call(1, bytes([frames.CHAT]) + b"{}", link, SimpleNamespace(errored=False)).start(asgi, calls)
    splitter, got = frames.Splitter(), list[tuple[int, bytes]]()
    while not got or got[-1][0] not in {frames.END, frames.BROKEN}:
        got += [(kind, payload) for kind, _, payload in splitter.feed(await reader.read(1 << 16))]
        seen(bodies(got))
    transport.close()
    writer.close()
    return got


def bodies(got: list[tuple[int, bytes]]) -> list[str]:
    return [payload.decode() for kind, payload in got if kind == frames.PIECE]


async def test_the_first_pieces_go_out_at_once_and_fast_ones_together() -> None:
    async def app(send: Send) -> None:
        for number in range(12):
            await send(piece(str(number % 10)))

    got = await frames_of(app, JOIN_S)
    assert bodies(got) == ["0", "1", "2", "3", "45678901"]
    assert [kind for kind, _ in got][-1] == frames.END


async def test_what_is_held_goes_out_by_itself_when_nothing_follows() -> None:
    all_seen = asyncio.Event()

    async def app(send: Send) -> None:
        for number in range(6):
            await send(piece(str(number)))
        await asyncio.wait_for(all_seen.wait(), 60)

    got = await frames_of(app, JOIN_S, lambda texts: all_seen.set() if texts[-1:] == ["45"] else None)
    assert (bodies(got), got[-1][0]) == (["0", "1", "2", "3", "45"], frames.END)


async def test_slow_pieces_are_not_held() -> None:
    async def app(send: Send) -> None:
        for number in range(7):
            await send(piece(str(number)))
            await asyncio.sleep(0.02)

    assert bodies(await frames_of(app, 0.01)) == [str(number) for number in range(7)]


@pytest.mark.parametrize("join_s", [0.0, JOIN_S])
async def test_nothing_is_lost_or_turned_round(join_s: float) -> None:
    async def app(send: Send) -> None:
        for number in range(200):
            await send(piece(f"{number},"))
            if number % 7 == 0:
                await asyncio.sleep(0)

    got = await frames_of(app, join_s)
    assert "".join(bodies(got)) == "".join(f"{number}," for number in range(200))
    assert (len(bodies(got)) == 200) == (join_s == 0)


async def test_an_engine_that_fails_has_said_all_that_it_made() -> None:
    async def app(send: Send) -> None:
        for number in range(6):
            await send(piece(str(number)))
        raise RuntimeError

    got = await frames_of(app, JOIN_S)
    assert "".join(bodies(got)) == "012345"
