"""What `cypria up` does, step by step: data dir, keys, bus, services, readiness, stop."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import APIError
from nats.js.errors import Error as JetStreamError
from pydantic import SecretStr

from infra.nats.users import PROVISION
from services._runtime import data_dir, named_variables, nats_server
from services._runtime.bus import Bus
from services._runtime.clock import monotonic
from services._runtime.data_dir import StartError
from services._runtime.provision import missing_streams, provision_bus
from services._runtime.server import EXIT_CONFIG, bind
from services._runtime.settings import ConfigError
from services._runtime.settings_model import Settings
from services._runtime.supervisor import Child, Supervisor, http_get, service_child
from services._runtime.telemetry import get_logger

log = get_logger(__name__)

SERVICES = ("metrics", "monitor", "alerts", "inference", "router")
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")
STOP_S = {"router": 6.0, "inference": 2.5, "metrics": 2.5, "monitor": 2.5, "alerts": 2.5, "nats-server": 1.0}
"""Seconds that a part may take to stop: the router first, then all other services at once, then the bus; 9.5 in all."""
DRAIN_S = 5.0
"""Longer, what is in flight does not get here: the router is killed after STOP_S."""
FORMING_S = 60.0
_FORMING = frozenset({10005, 10008})
"""What a cluster says that has no leader, or not yet enough servers for so many copies."""
NATS_TRIES = 3
"""An embedded nats-server that has died so often before it answered will not come up."""
_LOOK_S = 0.05


async def up(settings: Settings, config: Path | None) -> int:
    """Run the whole system until SIGTERM, SIGINT or the terminal's end; the exit status."""
    stop = asyncio.Event()
    _on_signals(stop.set)
    try:
        lock = data_dir.hold(settings.data_dir)
    except StartError as exc:
        return _refused(exc)
    supervisor = Supervisor()
    try:
        # The router would say so too, but last of all: a taken port should not cost a start.
        bind(settings.http.host, settings.http.port).close()
        starting = asyncio.create_task(_start(settings, config, supervisor))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if stopped.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return 0
        try:
            starting.result()
        except StartError as exc:
            return _refused(exc)
        return await _until_stopped(settings, supervisor, stopped)
    finally:
        await supervisor.stop()
        lock.close()


def _on_signals(stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup stays nohup
            loop.add_signal_handler(number, stop)


def _refused(exc: StartError) -> int:
    sys.stderr.write(f"cypria: {exc}\n")
    return exc.status


async def _until_stopped(settings: Settings, supervisor: Supervisor, stopped: "asyncio.Task[bool]") -> int:
    announce = asyncio.create_task(_announce_ready(settings))
    refused = asyncio.create_task(supervisor.wait_for_refusal())
    await asyncio.wait({stopped, refused}, return_when=asyncio.FIRST_COMPLETED)
    announce.cancel()
    if refused.done():
        sys.stderr.write(f"cypria: {refused.result()} refused its configuration; stopping\n")
        return EXIT_CONFIG
    refused.cancel()
    log.info("stopping")
    return 0


async def _start(settings: Settings, config: Path | None, supervisor: Supervisor) -> None:
    """Start everything. Raises StartError."""
    try:
        common = _environment(settings, data_dir.admin_key(settings))
        passwords = await _bus(settings, supervisor, common)
    except ConfigError as exc:
        raise StartError(str(exc)) from None
    except (OSError, ValueError) as exc:
        raise StartError(f"cannot start on {settings.data_dir}: {exc}") from None
    groups = (("metrics", "monitor", "alerts", "inference"), ("router",))
    for services in groups:
        planned = _plan(settings, services)
        await supervisor.start([_child(settings, name, index, config, common, passwords) for name, index in planned])


async def provision(settings: Settings, password: str | None = None, stored: Collection[str] = ()) -> None:
    """Make or update streams and buckets as the bus's provision user (`cypria provision`).

    ``stored`` are streams that the server must have. Raises StartError.
    """
    own = settings.model_copy(deep=True)
    if password is not None:
        own.nats.user, own.nats.password = PROVISION, SecretStr(password)
    bus = Bus(own, PROVISION)
    try:
        await connect(bus)
        js = bus.nc.jetstream(timeout=10)
        missing = await missing_streams(js, stored)
        if missing:
            store = settings.data_dir / "nats" / "store"
            raise StartError(
                f"nats-server cannot read what it has stored of {', '.join(missing)}: restore {store} from a backup, "
                f"or move it away to begin without tests, history and secrets; "
                f"{nats_server.log_file(settings.data_dir)} says more"
            )
        for line in await _made(js, settings):
            log.info("provisioned", what=line)
    except (JetStreamError, NatsError) as exc:
        raise StartError(
            f"NATS refuses to make streams ({exc}): give it room on the disk, or correct nats.servers and its user", 1
        ) from None
    finally:
        await bus.close()


async def _made(js: JetStreamContext, settings: Settings) -> list[str]:
    """`provision_bus`, again while the servers of a cluster have yet to find one another."""
    deadline = monotonic() + FORMING_S
    while True:
        try:
            return await provision_bus(js, settings.nats.replicas, settings.privacy.retention_days)
        except (JetStreamError, NatsError) as exc:
            refused = isinstance(exc, APIError) and exc.err_code not in _FORMING
            if settings.nats.replicas == 1 or refused or monotonic() > deadline:
                raise
            log.warning("nats_cluster_forms", error=str(exc) or repr(exc))
        await asyncio.sleep(1)


async def connect(bus: Bus) -> None:
    """Connect within half a minute. Raises StartError."""
    try:
        async with asyncio.timeout(30):
            await bus.connect()
    except ConfigError as exc:
        raise StartError(str(exc)) from None
    except TimeoutError:
        servers = ", ".join(_USERINFO.sub("", server) for server in bus.settings.nats.servers or [])
        more = f" ({bus.problem})" if bus.problem else ""
        raise StartError(f"no NATS server answers at {servers}{more}: start it, or correct nats.servers", 1) from None


def _environment(settings: Settings, admin_sha256: str | None) -> dict[str, str]:
    environment = {
        "CYPRIA_DATA_DIR": str(settings.data_dir),
        "CYPRIA_HTTP__PORT": str(settings.http.port),
        "CYPRIA_OPS__DRAIN_SECONDS": str(min(settings.ops.drain_seconds, DRAIN_S)),
    }
    if admin_sha256:
        keys = [{"name": "admin", "role": "admin", "key_sha256": admin_sha256}]
        environment["CYPRIA_SECURITY__API_KEYS"] = json.dumps(keys)
    return environment


async def _bus(settings: Settings, supervisor: Supervisor, common: dict[str, str]) -> dict[str, str]:
    """Start the embedded server unless servers are configured, provision; each user's password. Raises StartError."""
    if settings.nats.servers:
        known = settings.nats.passwords()
        await provision(settings, known.get(PROVISION))
        return known
    folder = settings.data_dir
    embedded = nats_server.prepare(folder, settings.nats.port, power_safe=settings.nats.durability == "power-safe")
    settings.nats.servers = [embedded.url]
    common["CYPRIA_NATS__SERVERS"] = json.dumps([embedded.url])
    log_file = nats_server.log_file(folder)
    since = log_file.stat().st_size if log_file.exists() else 0
    stored = nats_server.stored_streams(folder)
    command = [*embedded.command, "--log", str(log_file)]
    environ = named_variables.without(os.environ, settings, "nats-server")
    environ = {name: text for name, text in environ.items() if not name.startswith("CYPRIA_")}
    child = Child("nats-server", command, environ, stop_s=STOP_S["nats-server"])
    await supervisor.start([child])
    provisioning = asyncio.create_task(provision(settings, embedded.passwords[PROVISION], stored))
    try:
        while not provisioning.done():
            await asyncio.wait({provisioning}, timeout=_LOOK_S)
            if child.restarts >= NATS_TRIES and not provisioning.done():
                said = nats_server.complaints(folder, since)
                raise StartError(
                    f"nats-server does not start ({said[-1] if said else 'it says nothing'}): cure that, or give "
                    f"another --data-dir; {log_file} says more"
                )
        await provisioning
    finally:
        provisioning.cancel()
        await asyncio.gather(provisioning, return_exceptions=True)
    for line in nats_server.complaints(folder, since):
        log.error("nats_store_damaged", said=line, remedy="what is lost stays lost; restore nats/store from a backup")
    return embedded.passwords


def _plan(settings: Settings, services: tuple[str, ...]) -> list[tuple[str, int]]:
    return [(s, index) for s in services for index in range(getattr(settings.processes, s))]


def _child(
    settings: Settings, service: str, index: int, config: Path | None, common: dict[str, str], passwords: dict[str, str]
) -> Child:
    own = dict(common)
    if service in passwords:
        own["CYPRIA_NATS__USER"] = service
        own["CYPRIA_NATS__PASSWORD"] = passwords[service]
    path = str(config.resolve()) if config else None
    environ = named_variables.without(os.environ, settings, service)
    return service_child(service, index, config=path, settings=own, stop_s=STOP_S[service], environ=environ)


async def _announce_ready(settings: Settings) -> None:
    """Say once when the edge serves, and meanwhile what is missing when it changes."""
    started, told = monotonic(), ""
    host = "127.0.0.1" if settings.http.host == "0.0.0.0" else settings.http.host  # noqa: S104
    certificate = settings.http.tls.cert_file if settings.http.tls else None
    scheme = "https" if certificate else "http"
    while True:
        status, body = await http_get(host, settings.http.port, "/ready", certificate=certificate)
        if status == 200:
            log.info("ready", url=f"{scheme}://{host}:{settings.http.port}", seconds=round(monotonic() - started, 1))
            return
        missing = json.dumps(body.get("missing", "no answer yet"))
        if missing != told:
            told = missing
            log.info("waiting", missing=body.get("missing", "no answer yet"))
        await asyncio.sleep(0.1)
