"""Fixtures that every kind of test may use."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.harness import NatsServer


@pytest.fixture
async def nats_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A provisioned real nats-server."""
    server = NatsServer(tmp_path / "nats-data")
    server.start()
    try:
        await server.provision()
        yield server
    finally:
        server.kill()
