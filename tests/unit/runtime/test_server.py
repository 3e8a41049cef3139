"""A server that is asked to stop while its application starts."""

import asyncio
import logging
import socket
from typing import Any

import pytest
import uvicorn

from services._runtime import server


def test_a_stop_during_start_ends_a_task_that_swallows_its_first_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "disabled", False)  # put back once it was set
    swallowed: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    async def stubborn() -> None:
        """Like wait_for of Python 3.11 where its time is up in the same turn of the loop."""
        serving.should_exit = True
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.append("once")
        await asyncio.Event().wait()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        tasks.append(asyncio.create_task(stubborn()))
        await asyncio.Event().wait()

    serving = server._Server(uvicorn.Config(app, lifespan="on", log_config=None), None, 60.0)
    with socket.socket() as sock, asyncio.Runner() as runner:
        runner.run(server._serve(serving, sock))
    assert swallowed == ["once"]
    assert tasks[0].cancelled()
