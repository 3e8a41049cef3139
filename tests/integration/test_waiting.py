"""Services that start before streams and buckets are there, as in a cluster, wait for them and say so."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from infra.nats.users import permissions
from schemas import streams
from services._runtime.provisioned import needs, wait_until_provisioned
from tests.harness import NatsServer


@pytest.mark.parametrize("service", streams.SERVICES)
def test_whatever_a_service_waits_for_it_may_ask_about(service: str) -> None:
    asked = {f"$JS.API.STREAM.INFO.{name}" for name in needs(service)}
    assert len(asked) >= 1
    assert asked <= set(permissions(service).publish)


async def test_it_waits_for_what_provision_makes(tmp_path: Path) -> None:
    server = NatsServer(tmp_path)
    server.start()
    try:
        async with server.bus("monitor") as bus:
            waiting = asyncio.create_task(wait_until_provisioned(bus))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(waiting), 1)
            assert not waiting.done()
            await server.provision()
            await asyncio.wait_for(waiting, 60)
    finally:
        server.kill()
