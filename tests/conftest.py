"""Fixtures that every kind of test may use."""

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import settings

from services.inference.adapters import vllm_environment
from tests.harness import NatsServer

# Tests start hundreds of processes: where none may keep what it compiled, each compiles all of the code anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

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


def _without_vllm() -> str | None:
    """Why tests of the vLLM engine cannot run here, if so."""
    try:
        vllm_environment.interpreter(None)
    except ValueError as exc:
        return str(exc)
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs vLLM where it cannot be had: `make test` has installed it where it can."""
    if _without_vllm() and (left_out := [item for item in items if item.get_closest_marker("vllm")]):
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("vllm")]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say so in one line."""
    if reason := _without_vllm():
        terminalreporter.write_line(f"tests of engine vllm were left out: {reason}")
