"""Runs one service as a process: settings, logs, uvicorn, signals, no orphan."""

import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import math
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from prometheus_client import REGISTRY

import services._runtime.lean  # noqa: F401 - first, before anything imports nats-py and structlog
from services._runtime import tls
from services._runtime.bus import Bus
from services._runtime.settings import ConfigError, load
from services._runtime.settings_model import Settings, bare
from services._runtime.tasks import end
from services._runtime.telemetry import get_logger, setup_logging
from services._runtime.vitals import Build, Certificates

EXIT_CONFIG = 78
"""sysexits.h EX_CONFIG: the supervisor does not restart a service that cannot read its configuration."""

_PR_SET_PDEATHSIG = 1
SUPERVISED = "CYPRIA_SUPERVISOR_PID"
CONFIG_FILE = "CYPRIA_CONFIG_FILE"
MAX_FILES = 65_536
RENEW_S = 5.0
"""How often files of a certificate are looked at."""
MEET_S = 3.0
LIMIT_S = 7.0
"""A process that has been asked to end ends so long after what is in flight had its time, whatever hangs; it may be
killed at any moment anyway."""


def die_with_parent(sig: signal.Signals = signal.SIGKILL, parent: int | None = None) -> None:
    """Have the kernel signal this process when its parent dies, however the parent dies (Linux).

    A stopped process, or one that hangs, would outlive any other signal than SIGKILL and keep its port and files.
    Ends this process at once when it is not (any more) a child of ``parent``.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(sig))
    if parent is not None and os.getppid() != parent:
        os._exit(0)


def allow_many_files() -> None:
    """Let this process have as many connections as it may: the soft limit that most shells set is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # some systems have a limit below the one that they tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def load_or_exit(config: Path | None) -> Settings:
    """The settings, or the error on stderr and exit status EXIT_CONFIG."""
    try:
        return load(config, os.environ)
    except ConfigError as exc:
        raise _refused(str(exc)) from None


def log_or_exit(service: str, settings: Settings) -> None:
    """Set up the log; exits like `load_or_exit` where its file cannot be written."""
    try:
        setup_logging(service, settings.logging)
    except ConfigError as exc:
        raise _refused(str(exc)) from None


def _refused(reason: str) -> SystemExit:
    sys.stderr.write(f"cypria: configuration refused\n{reason}\n")
    return SystemExit(EXIT_CONFIG)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; exits with the remedy when the address is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as exc:
        sys.stderr.write(f"cypria: cannot listen on {host}:{port} ({exc.strerror}): free the port or give another\n")
        raise SystemExit(EXIT_CONFIG) from None
    sock.listen(2048)
    sock.setblocking(False)  # noqa: FBT003 - the socket API
    return sock


def main(service: str, build_app: Callable[[Settings], Any], **uvicorn_options: Any) -> None:
    """`python -m services.NAME [--config FILE]`."""
    run(service, build_app, _config_argument(sys.argv[1:]), **uvicorn_options)


def _config_argument(argv: list[str]) -> Path | None:
    if not argv:
        return Path(os.environ[CONFIG_FILE]) if os.environ.get(CONFIG_FILE) else None
    if len(argv) == 2 and argv[0] == "--config":
        return Path(argv[1])
    sys.stderr.write("usage: python -m services.NAME [--config FILE]\n")
    raise SystemExit(2)


def run(service: str, build_app: Callable[[Settings], Any], config: Path | None, **uvicorn_options: Any) -> None:
    """Run a service until SIGTERM or SIGINT; then drain within `ops.drain_seconds` and return."""
    if os.environ.get(SUPERVISED):
        die_with_parent(parent=int(os.environ[SUPERVISED]))
    allow_many_files()
    settings = load_or_exit(config)
    log_or_exit(service, settings)
    log = get_logger(__name__)
    edge = service == "router"
    served = settings.http.tls if edge else None
    try:
        secured = tls.Serving(served, "http.tls") if served else None
        app = build_app(settings)
        if settings.nats.encrypted:
            asyncio.run(_meet_bus(settings, service))
    except ConfigError as exc:  # what only this service can judge: keys, addresses, variables that the file names
        raise _refused(f"{config}: {exc}" if config else str(exc)) from None
    sock = bind(*((settings.http.host, settings.http.port) if edge else (settings.ops.host, settings.ops.port)))
    host, port = sock.getsockname()[:2]
    configured = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        loop="uvloop",
        timeout_graceful_shutdown=math.ceil(settings.ops.drain_seconds),
        server_header=False,
        date_header=False,
        **uvicorn_options,
    )
    if secured:
        configured.load()
        configured.ssl = secured.context
    server = _Server(configured, secured, settings.ops.drain_seconds + LIMIT_S)
    for number in (signal.SIGTERM, signal.SIGINT):
        # Until uvicorn's own handlers stand, and after them: uvicorn raises the signal again once it has drained, and a
        # clean stop is not a death by signal.
        signal.signal(number, server.handle_exit)
    REGISTRY.register(Build(service))
    REGISTRY.register(Certificates(service, settings))
    log.info("starting", host=host, port=port, pid=os.getpid())
    _write_run_file(settings, service, host, port, served.cert_file if served else None)
    with asyncio.Runner(loop_factory=_uvloop) as runner:
        runner.run(_serve(server, sock))
    log.info("stopped")
    if not server.started and not server.should_exit:
        raise SystemExit(1)


class _Server(uvicorn.Server):
    """A server that can be stopped while it starts, and whose garbage collector leaves alone what start-up made."""

    _asked = False

    def __init__(self, config: uvicorn.Config, secured: tls.Serving | None, limit_s: float) -> None:
        super().__init__(config)
        self._limit_s = limit_s
        self._secured = secured
        self._renewing: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; what is not over in time is cut off."""
        if not self._asked:
            self._asked = True
            limit = threading.Timer(self._limit_s, _cut_off, [self._limit_s])
            limit.daemon = True
            limit.start()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then freeze what there is. A signal ends the wait for a bus that is away."""
        starting = asyncio.create_task(super().startup(sockets))
        while not starting.done() and not self.should_exit:
            await asyncio.wait({starting}, timeout=0.1)
        if not starting.done():
            # What it then says of an application that did not start is no error.
            logging.getLogger("uvicorn.error").disabled = True
            starting.cancel()
            return
        await starting
        # Code, classes and settings stay until the end. A full collection would walk all of them: 70 ms of CPU now
        # and then in which nothing is served, and no rollback taken.
        gc.collect()
        gc.freeze()
        if self._secured:
            self._renewing = asyncio.create_task(_renew(self._secured))


async def _serve(server: _Server, sock: socket.socket) -> None:
    """Serve until the end, which is the end of every task: a stop while the application starts leaves some."""
    await server.serve(sockets=[sock])
    own = asyncio.current_task()
    while left := asyncio.all_tasks() - {own}:  # one that ends may have begun another
        await end(*left)


async def _renew(secured: tls.Serving) -> None:
    """Serve new connections with the certificate that is there, once the files have changed."""
    log = get_logger(__name__)
    while True:
        await asyncio.sleep(RENEW_S)
        try:
            if secured.renew():
                log.info("certificate_renewed", file=str(secured.files.cert_file))
        except ConfigError as exc:
            log.error("certificate_not_renewed", reason=str(exc))


async def _meet_bus(settings: Settings, service: str) -> None:
    """Raises ConfigError where TLS refuses the bus, or the bus us; one that is away is waited for later on."""
    bus = Bus(settings, service)
    try:
        async with asyncio.timeout(MEET_S):
            await bus.connect()
    except TimeoutError:
        get_logger(__name__).warning("nats_away", servers=[bare(server) for server in settings.nats.servers or []])
    finally:
        await bus.close()


def _cut_off(after_s: float) -> None:
    get_logger(__name__).error("stop_cut_off", after_s=after_s)
    os._exit(1)


def _uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _write_run_file(settings: Settings, service: str, host: str, port: int, certificate: Path | None) -> None:
    """Where this process listens, for `cypria doctor` and people; one file for each process."""
    where = {"service": service, "pid": os.getpid(), "host": host, "port": port}
    if certificate:
        where["certificate"] = str(certificate.resolve())
    folder = settings.data_dir / "run"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{service}.{os.getpid()}.json"
        unfinished = folder / f".{path.name}.new"
        unfinished.write_text(json.dumps(where))
        unfinished.replace(path)  # whoever finds it reads the whole of it
    except OSError as exc:
        get_logger(__name__).warning("run_file_not_written", folder=str(folder), error=str(exc))
