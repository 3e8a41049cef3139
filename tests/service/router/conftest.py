from collections.abc import AsyncIterator

import pytest

from tests.harness import NatsServer
from tests.service.router.rig import Rig, running


@pytest.fixture
async def rig(nats_server: NatsServer) -> AsyncIterator[Rig]:
    async with running(nats_server) as rig:
        yield rig
