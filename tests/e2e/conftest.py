"""A running system in front of two OpenAI-compatible upstreams, one for all tests of a module."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.fakes.openai_server import FakeOpenAI
from tests.system import ROOT, System, running


def engine_config(stable: FakeOpenAI, canary: FakeOpenAI, **sections: Any) -> dict[str, Any]:
    """Both models as `openai` engines in front of the upstreams."""
    models = [
        {"name": name, "engine": "openai", "base_url": upstream.base_url, "timeout_seconds": 10}
        for name, upstream in (("stable", stable), ("canary", canary))
    ]
    limits = {"control_per_minute": 0, "control_burst": 1000}
    sources = {"allow": [str(ROOT / "infra" / "models")]}
    return {"models": models, "model_sources": sources, "security": {"rate_limit": limits}, **sections}


@pytest.fixture
async def upstreams() -> AsyncIterator[tuple[FakeOpenAI, FakeOpenAI]]:
    """Two upstream servers."""
    stable, canary = FakeOpenAI(), FakeOpenAI()
    await stable.start()
    await canary.start()
    yield stable, canary
    await stable.stop()
    await canary.stop()


@pytest.fixture
async def system(
    tmp_path_factory: pytest.TempPathFactory, upstreams: tuple[FakeOpenAI, FakeOpenAI]
) -> AsyncIterator[System]:
    """`cypria up` in front of them."""
    async with running(tmp_path_factory.mktemp("system"), engine_config(*upstreams)) as system:
        yield system
