"""Ports that Cypria picks by itself."""

import socket
from pathlib import Path

from services._runtime.nats_server import free_port

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_a_free_port_is_none_that_the_kernel_gives_to_others() -> None:
    first, last = map(int, RANGE.read_text().split())
    for _ in range(20):
        port = free_port()
        assert not first <= port <= last
        with socket.create_server(("127.0.0.1", port)):
            assert free_port() != port
