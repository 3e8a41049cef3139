"""The host process: its link to the worker, and the life of the engine in it."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from typing import Any

import msgspec

from . import frames
from .calls import Call
from .engine import ArgumentError, Loaded, load, said
from .frames import Failed, Health, Progress, Ready, Splitter, Start
from .stats import EngineStats

_PROBE_S = 0.2
_COMPUTING_S = 60.0
"""For how long an engine core that says nothing is believed to compute because it uses the CPU."""
_MIN_CPU = 0.05
_PIDS_EVERY = 20
_SHUTDOWN_S = 3
_DRAIN_S = 1.0


class Link(asyncio.Protocol):
    """The socket. What is sent in one turn of the event loop goes out in one write."""

    def __init__(self, host: "Host", join_s: float) -> None:
        self._host = host
        self.join_s = join_s
        self._held: list[Call] = []
        self._splitter = Splitter()
        self._transport: Any = None
        self._out: list[bytes] = []
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        for kind, stream, payload in self._splitter.feed(data):
            self._host.received(kind, stream, payload)

    def connection_lost(self, _exc: Exception | None) -> None:
        """The worker has gone, and with it the reason to be here; so have the engine's processes none."""
        die()

    def send(self, kind: int, stream: int, payload: bytes = b"") -> None:
        """Send a frame at the end of this turn."""
        out = self._out
        if not out:
            self._loop.call_soon(self._flush)
        out += (frames.header(kind, stream, len(payload)), payload)

    def hold(self, call: Call, seconds: float) -> None:
        """Have the call release what it holds back, in at most so many seconds.

        All calls release together: a step of the engine has a piece for each, and wakes the worker once.
        """
        if not self._held:
            self._loop.call_later(seconds, self._release)
        self._held.append(call)

    def _release(self) -> None:
        held, self._held = self._held, []
        for call in held:
            call.release()

    def _flush(self) -> None:
        out, self._out = self._out, []
        self._transport.write(b"".join(out))

    async def drain(self) -> None:
        """Send what is left, if the worker takes it."""
        self._flush()
        end = time.monotonic() + _DRAIN_S
        while self._transport.get_write_buffer_size() and time.monotonic() < end:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)


def die() -> None:
    """Kill this process and all that it has started."""
    os.killpg(0, signal.SIGKILL)


def end_children() -> None:
    """Kill what this process has started, and reap it: not everywhere does somebody reap orphans."""
    import multiprocessing.resource_tracker

    import psutil

    tracker: Any = multiprocessing.resource_tracker._resource_tracker  # noqa: SLF001 - it has no public end
    others = [child for child in psutil.Process().children(recursive=True) if child.pid != tracker._pid]  # noqa: SLF001
    for child in others:
        with contextlib.suppress(psutil.Error):
            child.kill()
    psutil.wait_procs(others, _DRAIN_S)
    with contextlib.suppress(Exception):
        tracker._stop()  # noqa: SLF001


class Host:
    """Serves requests with a loaded engine until it is closed or dies."""

    def __init__(self, loaded: Loaded, stats: EngineStats, join_s: float) -> None:
        self._engine = loaded.engine
        self._app = loaded.app
        self._tidy = loaded.tidy
        self._stats = stats
        self._calls: dict[int, Call] = {}
        self._probe: asyncio.Task[Any] | None = None
        self._pids = children()
        self._active_at = 0.0
        self._cpu: tuple[float, float] | None = None
        self._closing = asyncio.Event()
        self.link = Link(self, join_s)

    def received(self, kind: int, stream: int, payload: bytes) -> None:
        """A frame of the worker's has come."""
        if kind == frames.REQUEST:
            call = self._calls[stream] = Call(stream, payload, self.link, self._engine)
            call.start(self._app, self._calls)
        elif kind == frames.CLOSE:
            self._closing.set()
        elif (found := self._calls.get(stream)) is not None:
            if kind == frames.CANCEL:
                found.cancel()
            else:
                found.taken(frames.count(payload))

    async def serve(self) -> None:
        """Tell of the engine's health until it is to be closed, or dies."""
        turn = 0
        while not self._closing.is_set():
            if self._engine.errored:
                self._died()
                return
            turn += 1
            if turn % _PIDS_EVERY == 0:
                self._pids = children()
            running, waiting, kv_cache = self._stats.now()
            health = Health(running, waiting, kv_cache, self._quiet_s(), self._pids)
            self.link.send(frames.HEALTH, 0, frames.encode(health))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), frames.HEALTH_S)
        if self._tidy:
            self._engine.shutdown(timeout=_SHUTDOWN_S)

    def _quiet_s(self) -> float:
        """For how long no engine core has shown life. One without work is asked for a sign of it."""
        now = time.monotonic()
        probe = self._probe
        if probe is not None and probe.done():
            self._probe = None
            if not probe.cancelled() and probe.exception() is None:
                self._stats.life_at = now
        quiet = now - max(self._stats.life_at, self._active_at)
        if quiet < _PROBE_S:
            self._cpu = None
            return 0.0
        if self._probe is None:
            self._probe = asyncio.ensure_future(self._ask())
        # A long step answers nobody either, but it computes.
        used = cpu_seconds(self._pids)
        if self._cpu is None:
            self._cpu = (now, used)
        since, before = self._cpu
        if now - self._stats.life_at < _COMPUTING_S and used - before > _MIN_CPU * (now - since):
            self._active_at = now
            return 0.0
        return quiet if quiet >= 2 * _PROBE_S else 0.0

    async def _ask(self) -> None:
        ask = getattr(self._engine, "is_paused", None) or self._engine.is_sleeping
        await ask()

    def _died(self) -> None:
        for call in list(self._calls.values()):
            call.fail("the engine died")
        self.link.send(frames.DEAD, 0)


def children() -> list[int]:
    """The processes below this one."""
    import psutil

    return sorted(child.pid for child in psutil.Process().children(recursive=True))


def cpu_seconds(pids: list[int]) -> float:
    """CPU time that processes have used."""
    import psutil

    total = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system
    return total


def _read_start(sock: socket.socket) -> Start:
    splitter = Splitter()
    while data := sock.recv(1 << 16):
        for kind, _, payload in splitter.feed(data):
            assert kind == frames.START
            return msgspec.json.decode(payload, type=Start)
    die()
    raise AssertionError("unreachable")


async def _main(sock: socket.socket) -> None:
    # Until the engine is there nothing else goes on in this loop: what is told of it is written directly.
    start = _read_start(sock)

    def tell(kind: int, message: bytes) -> None:
        sock.sendall(frames.frame(kind, 0, message))

    tell(frames.PROGRESS, frames.encode(Progress("importing vLLM")))
    stats = EngineStats()
    try:
        loaded = await load(start, stats)
    except (Exception, SystemExit) as exc:
        own = isinstance(exc, ArgumentError)
        reason = str(exc) if own else f"{type(exc).__name__}: {said(exc)}"
        tell(frames.FAILED, frames.encode(Failed(reason, isinstance(exc, frames.LASTING))))
        if not own:
            traceback.print_exc()
        return
    _freeze()
    host = Host(loaded, stats, start.join_s)
    ready = Ready(loaded.version, loaded.generates, loaded.embeds, stats.devices, children())
    tell(frames.READY, frames.encode(ready))
    stats.life_at = time.monotonic()
    sock.setblocking(False)  # noqa: FBT003 - the socket API
    await asyncio.get_running_loop().create_unix_connection(lambda: host.link, sock=sock)
    await host.serve()
    await host.link.drain()


def _freeze() -> None:
    """Take what loading made out of the garbage collector's rounds."""
    import gc

    gc.collect()
    gc.freeze()


def run(sock: socket.socket) -> None:
    """Load what the worker asks for, and serve it. Does not come back: what vLLM leaves running is killed."""
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        factory = asyncio.new_event_loop
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)  # so that only what is ours is killed in the end
    loop = factory()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(_main(sock))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(Exception):
            end_children()
        die()
