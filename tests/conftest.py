"""Fixtures that every kind of test may use."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.harness import NatsServer

# No timed assertions: how long an example takes says more about the machine than about the code.
settings.register_profile("cypria", deadline=None)
settings.load_profile("cypria")


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
