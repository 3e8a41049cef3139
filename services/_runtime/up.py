"""What `cypria up` does, step by step: data dir, keys, bus, services, readiness, stop."""

import asyncio
import fcntl
import hashlib
import json
import os
import re
import secrets
import signal
import sys
from pathlib import Path
from typing import IO

from pydantic import SecretStr

from infra.nats.users import PROVISION
from services._runtime import nats_server
from services._runtime.bus import Bus
from services._runtime.clock import monotonic
from services._runtime.provision import provision_bus
from services._runtime.server import EXIT_CONFIG, bind
from services._runtime.settings_model import Settings
from services._runtime.supervisor import Child, Supervisor, http_get, service_child
from services._runtime.telemetry import get_logger

log = get_logger(__name__)

SERVICES = ("metrics", "monitor", "alerts", "inference", "router")
ADMIN_KEY_FILE = "admin.key"
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")
STOP_S = {"router": 5.5, "inference": 2.0, "metrics": 2.0, "monitor": 1.5, "alerts": 1.5}


async def up(settings: Settings, config: Path | None) -> int:
    """Run the whole system until SIGTERM or SIGINT; the exit status."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    lock = _lock(settings.data_dir)
    # The router would say so too, but last of all: a taken port should not cost a start.
    bind(settings.http.host, settings.http.port).close()
    supervisor = Supervisor()
    try:
        common = _environment(settings, _admin_key(settings))
        passwords = await _bus(settings, supervisor, common)
        await provision(settings, passwords.get(PROVISION))
        await supervisor.start(
            [_child(s, i, config, common, passwords) for s, i in _plan(settings, ("metrics", "monitor", "alerts"))]
        )
        await supervisor.start([_child(s, i, config, common, passwords) for s, i in _plan(settings, ("inference",))])
        await supervisor.start([_child(s, i, config, common, passwords) for s, i in _plan(settings, ("router",))])
        announce = asyncio.create_task(_announce_ready(settings))
        stopped = asyncio.create_task(stop.wait())
        refused = asyncio.create_task(supervisor.wait_for_refusal())
        await asyncio.wait({stopped, refused}, return_when=asyncio.FIRST_COMPLETED)
        announce.cancel()
        if refused.done():
            sys.stderr.write(f"cypria: {refused.result()} refused its configuration; stopping\n")
            return EXIT_CONFIG
        refused.cancel()
        log.info("stopping")
        return 0
    finally:
        await supervisor.stop()
        lock.close()


async def provision(settings: Settings, password: str | None = None) -> None:
    """Make or update streams and buckets as the bus's provision user (`cypria provision`)."""
    own = settings.model_copy(deep=True)
    if password is not None:
        own.nats.user, own.nats.password = PROVISION, SecretStr(password)
    bus = Bus(own, PROVISION)
    try:
        async with asyncio.timeout(30):
            await bus.connect()
    except TimeoutError:
        await bus.close()
        servers = ", ".join(_USERINFO.sub("", server) for server in own.nats.servers or [])
        sys.stderr.write(f"cypria: no NATS server answers at {servers}: start it, or correct nats.servers\n")
        raise SystemExit(1) from None
    try:
        for line in await provision_bus(
            bus.nc.jetstream(timeout=10), settings.nats.replicas, settings.privacy.retention_days
        ):
            log.info("provisioned", what=line)
    finally:
        await bus.close()


def _lock(data_dir: Path) -> IO[str]:
    """Hold the data dir; exits when another `cypria up` has it."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (data_dir / "up.lock").open("a+")
    except OSError as exc:
        sys.stderr.write(f"cypria: cannot use {data_dir} as the data dir ({exc.strerror}): give another --data-dir\n")
        raise SystemExit(EXIT_CONFIG) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.stderr.write(f"cypria: {data_dir} is in use by another `cypria up`: stop it, or give another --data-dir\n")
        raise SystemExit(EXIT_CONFIG) from None
    run = data_dir / "run"
    run.mkdir(exist_ok=True)
    for stale in run.glob("*.json"):
        stale.unlink(missing_ok=True)
    return file


def _admin_key(settings: Settings) -> str | None:
    """SHA-256 of the admin key kept in the data dir, made at first start; None when keys are configured."""
    if settings.security.api_keys:
        return None
    path = settings.data_dir / ADMIN_KEY_FILE
    if not path.exists():
        nats_server.write_private(path, "cyp_" + secrets.token_urlsafe(32) + "\n")
    sys.stderr.write(f"cypria: no key is configured; the admin key is in {path}\n")
    return hashlib.sha256(path.read_text().strip().encode()).hexdigest()


def _environment(settings: Settings, admin_sha256: str | None) -> dict[str, str]:
    environment = {"CYPRIA_DATA_DIR": str(settings.data_dir), "CYPRIA_HTTP__PORT": str(settings.http.port)}
    if admin_sha256:
        keys = [{"name": "admin", "role": "admin", "key_sha256": admin_sha256}]
        environment["CYPRIA_SECURITY__API_KEYS"] = json.dumps(keys)
    return environment


async def _bus(settings: Settings, supervisor: Supervisor, common: dict[str, str]) -> dict[str, str]:
    """Start the embedded server unless servers are configured; each user's password."""
    if settings.nats.servers:
        file = settings.nats.credentials_file
        return dict(json.loads(file.read_text())) if file else {}
    try:
        embedded = nats_server.prepare(
            settings.data_dir, settings.nats.port, power_safe=settings.nats.durability == "power-safe"
        )
    except FileNotFoundError as exc:
        sys.stderr.write(f"cypria: {exc}\n")
        raise SystemExit(EXIT_CONFIG) from None
    log_file = str(settings.data_dir / "nats" / "nats-server.log")
    await supervisor.start([Child("nats-server", [*embedded.command, "--log", log_file], dict(os.environ), stop_s=1.5)])
    settings.nats.servers = [embedded.url]
    common["CYPRIA_NATS__SERVERS"] = json.dumps([embedded.url])
    return embedded.passwords


def _plan(settings: Settings, services: tuple[str, ...]) -> list[tuple[str, int]]:
    return [(s, index) for s in services for index in range(getattr(settings.processes, s))]


def _child(service: str, index: int, config: Path | None, common: dict[str, str], passwords: dict[str, str]) -> Child:
    own = dict(common)
    if service in passwords:
        own["CYPRIA_NATS__USER"] = service
        own["CYPRIA_NATS__PASSWORD"] = passwords[service]
    path = str(config.resolve()) if config else None
    return service_child(service, index, config=path, settings=own, stop_s=STOP_S[service])


async def _announce_ready(settings: Settings) -> None:
    """Say once when the edge serves, and meanwhile what is missing when it changes."""
    started, told = monotonic(), ""
    host = "127.0.0.1" if settings.http.host == "0.0.0.0" else settings.http.host  # noqa: S104
    while True:
        status, body = await http_get(host, settings.http.port, "/ready")
        if status == 200:
            log.info("ready", url=f"http://{host}:{settings.http.port}", seconds=round(monotonic() - started, 1))
            return
        missing = json.dumps(body.get("missing", "no answer yet"))
        if missing != told:
            told = missing
            log.info("waiting", missing=body.get("missing", "no answer yet"))
        await asyncio.sleep(0.1)
