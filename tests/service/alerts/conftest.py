"""A running alerts service against a real bus and a real webhook."""

from collections.abc import AsyncIterator

import pytest

from tests.harness import NatsServer
from tests.service.alerts.side import Side
from tests.service.alerts.webhook import Webhook


@pytest.fixture
async def webhook() -> AsyncIterator[Webhook]:
    server = await Webhook().start()
    try:
        yield server
    finally:
        await server.stop()


@pytest.fixture
async def side(nats_server: NatsServer, webhook: Webhook) -> AsyncIterator[Side]:
    one = Side(nats_server, webhook)
    await one.connect()
    try:
        yield one
    finally:
        await one.close()
