"""`cypria load --scenario`: what a rehearsal shows and leaves, and what it says where it cannot be."""

import contextlib
import json
import socket

from services._runtime.nats_server import free_port
from tests.e2e.product import KEYS, Product, cypria


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


async def what_cannot_be_rehearsed(product: Product) -> None:
    """An address that the operator has not allowed; with a key that may not."""
    other = str(free_port())
    for arguments, variables, words in (
        (("--scenario", "burst", "--engine-port", other), {}, f'model_sources: {{allow: ["http://127.0.0.1:{other}/"'),
        (("--scenario", "burst", "--engine-port", other), {"CYPRIA_API_KEY": KEYS["operator"]}, "admin"),
    ):
        status, _, said = await cypria(product, "load", *arguments, **variables)
        assert (status, words in said, "Traceback" in said) == (1, True, False), said
