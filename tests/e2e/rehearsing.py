"""`cypria load --scenario`: what a rehearsal shows and leaves, and what it says where it cannot be."""

import asyncio
import contextlib
import json
import signal
import socket
import sys

from services._runtime.nats_server import free_port
from tests.e2e.product import KEYS, Product, cypria
from tests.harness import environment, eventually
from tests.system import ROOT
from tests.terminal import Terminal


def _two() -> tuple[int, int]:
    """Two free ports beside each other."""
    while True:
        port = free_port()
        with socket.socket() as other, contextlib.suppress(OSError, OverflowError):
            other.bind(("127.0.0.1", port + 1))
            return port, port + 1


PORTS = _two()


async def a_bad_canary(product: Product) -> None:
    """It is taken out while no client sees a failure; engines, models and the test are gone in the end."""
    status, shown, said = await cypria(
        product, "load", "--scenario", "bad-canary", "--engine-port", str(PORTS[0]), "--seconds", "50", "--json"
    )
    found = json.loads(shown)
    assert (status, found["as_expected"], found["rolled_back"], found["failed"]) == (0, True, True, 0), shown + said
    assert 0 < found["canary_requests"] < found["sent"]
    assert "errors" in found["reason"]
    known = [model["name"] for model in (await product.system.api("GET", "models"))["models"]]
    assert not [name for name in known if name.startswith("rehearsal")]
    assert (await product.system.status(found["test_id"]))["status"] == "rolled_back"


async def what_a_signal_ends(product: Product) -> None:
    """By SIGTERM, and by a terminal that is closed: the test ends, the models are removed, and that is said."""
    known = {"CYPRIA_URL": product.system.url, "CYPRIA_API_KEY": KEYS["admin"], "PYTHONPATH": str(ROOT)}
    arguments = ("load", "--scenario", "burst", "--engine-port", str(PORTS[0]), "--seconds", "600")

    async def running() -> str | None:
        status = await product.system.api("GET", "status")
        return status["test_id"] if (status["models"] or {}).get("variant_b") == "rehearsal-canary" else None

    async def gone(test_id: str) -> None:
        assert (await product.system.status(test_id))["status"] == "completed"
        known = [model["name"] for model in (await product.system.api("GET", "models"))["models"]]
        assert not [name for name in known if name.startswith("rehearsal")]

    playing = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.cli", *arguments, stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE, cwd=ROOT, env=environment(**known),
    )  # fmt: skip
    test_id = await eventually(running, every_s=0.1)
    playing.terminate()
    _, said = await playing.communicate()
    assert playing.returncode == 128 + signal.SIGTERM, said
    words = f"ended by SIGTERM: {test_id} is stopped, rehearsal-stable is removed, rehearsal-canary is removed"
    assert words in said.decode()
    await gone(test_id)
    with Terminal(product, *arguments, rows=24, columns=80) as screen:
        test_id = await eventually(running, every_s=0.1)
        screen.hang_up()
        assert await screen.left() == 128 + signal.SIGHUP
    await gone(test_id)


async def what_cannot_be_rehearsed(product: Product) -> None:
    """An address that the operator has not allowed; with a key that may not."""
    other = str(free_port())
    for arguments, variables, words in (
        (("--scenario", "burst", "--engine-port", other), {}, f'model_sources: {{allow: ["http://127.0.0.1:{other}/"'),
        (("--scenario", "burst", "--engine-port", other), {"CYPRIA_API_KEY": KEYS["operator"]}, "admin"),
    ):
        status, _, said = await cypria(product, "load", *arguments, **variables)
        assert (status, words in said, "Traceback" in said) == (1, True, False), said
