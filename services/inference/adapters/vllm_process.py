"""The process that hosts a vLLM engine, seen from the worker: start, streams, signs of life, end."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import psutil

from services._runtime.clock import monotonic
from services.inference.adapters.engine import EngineError, OnProgress, ignore_progress
from services.inference.adapters.vllm_environment import environment
from services.inference.adapters.vllm_log import HostLog
from services.inference.vllm_host import frames
from services.inference.vllm_host.frames import Broken, Failed, Head, Health, Progress, Ready, Start, Stats

_PREFIX = "cypria-vllm-"
_MAIN = Path(frames.__file__).with_name("main.py")
_LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT
"""Whether a process has ended, without reaping it: its number stays that of its group."""
_TICK_S = 0.1
_MAX_TICK_S = 0.2
_BUSY_S = 5.0
"""For how long a host that tells nothing is believed to have much to do because it uses the CPU."""
_MEMORY_EVERY = 10
_CLOSE_S = 5.0
_GONE_S = 5.0
_TRACKER_S = 0.2
_decode_health = msgspec.json.Decoder(Health).decode
_decode_head = msgspec.json.Decoder(Head).decode
_decode_stats = msgspec.json.Decoder(Stats).decode
_decode_broken = msgspec.json.Decoder(Broken).decode


class LoadError(RuntimeError):
    """vLLM could not load the model; the message is its own."""


class RefusedError(LoadError, ValueError):
    """It could not, and will not at another try."""


class Stream:
    """What comes back for one request."""

    __slots__ = ("_taken", "_wake", "ended", "error", "head", "number", "pieces", "stats")

    def __init__(self, number: int) -> None:
        self.number = number
        self.head: Head | None = None
        self.pieces: list[bytes] = []
        self.ended = False
        self.error: EngineError | None = None
        self.stats: Stats | None = None
        self._wake: asyncio.Future[None] | None = None
        self._taken = 0

    def changed(self) -> None:
        """Something has come."""
        wake = self._wake
        if wake is not None and not wake.done():
            wake.set_result(None)

    async def change(self) -> None:
        """Wait until something comes."""
        self._wake = asyncio.get_running_loop().create_future()
        await self._wake

    def received(self, kind: int, payload: bytes) -> None:
        """A frame other than a piece."""
        if kind == frames.HEAD:
            self.head = _decode_head(payload)
        elif kind == frames.END:
            self.stats = _decode_stats(payload)
            self.ended = True
        elif kind == frames.BROKEN:
            broken = _decode_broken(payload)
            self.error = EngineError(broken.status, broken.message, kind="engine_error")
            self.ended = True
        self.changed()

    def take(self) -> bytes:
        """All bytes that have come."""
        pieces, self.pieces = self.pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def took(self, size: int) -> int:
        """Count bytes as taken; how many the host should now be told of, 0 for none yet."""
        self._taken += size
        if self._taken < frames.WINDOW // 2:
            return 0
        taken, self._taken = self._taken, 0
        return taken


class HostProcess(asyncio.Protocol):
    """One host. Loads once, serves, and is closed; never used again after that."""

    def __init__(self, python: Path, model: str) -> None:
        self._python = python
        self._model = model
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = ""
        self._transport: Any = None
        self._splitter = frames.Splitter()
        self._streams: dict[int, Stream] = {}
        self._numbers = 0
        self._log = HostLog(model)
        self._ready: asyncio.Future[Ready] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._unheard_s = 0.0
        self._silent_s = 0.0
        self._room = asyncio.Event()
        self._room.set()
        self._ended = asyncio.Event()
        self._killed = asyncio.Event()
        self._memory = 0
        self.health = Health(0, 0, 0.0, 0.0, [])
        self.ready: Ready | None = None
        self.dead: str | None = None

    # --- life

    async def load(self, start: Start, progress: OnProgress) -> Ready:
        """Start the process and load. Raises LoadError; however it ends, `close` cleans up."""
        self._log.progress = progress
        self._ready = asyncio.get_running_loop().create_future()
        await self._start()
        self._transport.write(frames.frame(frames.START, 0, frames.encode(start)))
        self.ready = await self._ready
        self._log.progress = ignore_progress
        self._unheard_s = self._silent_s = 0.0
        self.health.pids = self.ready.pids
        self._measure()
        return self.ready

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(_sweep)
        ours, theirs = socket.socketpair()
        self._folder = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-")
        log_end = self._log.open()
        try:
            # A group of its own, so that all that it starts can be killed at once; no preexec_fn, beside threads.
            self._process = subprocess.Popen(  # noqa: ASYNC220, S603 - it returns when the process was started
                [self._python, "-I", _MAIN, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL, stdout=log_end, stderr=log_end, pass_fds=(theirs.fileno(),),
                start_new_session=True, env=environment(os.environ, self._folder), cwd=self._folder,
            )  # fmt: skip
        except OSError as exc:
            ours.close()
            raise LoadError(f"{self._python} cannot be started ({exc.strerror}): run `make install-vllm`") from exc
        finally:
            theirs.close()
            os.close(log_end)
        ours.setblocking(False)  # noqa: FBT003 - the socket API
        await loop.create_unix_connection(lambda: self, sock=ours)
        self._watch = loop.create_task(self._watching())

    @property
    def usable(self) -> bool:
        """Whether requests may be sent to it."""
        return self.ready is not None and self.dead is None

    async def close(self) -> None:
        """Have it end, kill what does not, and wait until all its processes are gone. May be called at any time."""
        if self.dead is None and self.ready is not None and self._transport is not None:
            self._transport.write(frames.frame(frames.CLOSE, 0))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), _CLOSE_S)
        self._end("the engine is closed")
        if self._watch is not None:
            self._watch.cancel()
        process = self._process
        if process is not None:
            await self._killed.wait()
            pids = {process.pid, *self.health.pids}
            end = monotonic() + _GONE_S
            while monotonic() < end and (process.poll() is None or any(map(_lives, pids))):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        if self._transport is not None:
            self._transport.abort()
        self._log.close()
        if self._folder:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    def _end(self, reason: str, kind: type[LoadError] = LoadError) -> None:
        """Kill the group, and end what waits for it."""
        if self.dead is not None:
            return
        self.dead = reason
        self._ended.set()
        process = self._process
        # Its leader is not reaped before, so that its number is still that of its group.
        if process is not None and process.returncode is None:
            self.health.pids = sorted({*self.health.pids, *_below(process.pid)})
            self._kill(process.pid)
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(kind(reason))
        for stream in list(self._streams.values()):
            if not stream.ended:
                stream.ended = True
                stream.error = stream.error or EngineError(502, reason, kind="engine_error")
                stream.changed()
        self._room.set()

    def _kill(self, host: int) -> None:
        """Kill the host and all below it; those last that give back shared memory, once nobody is left to use it."""
        trackers = [pid for pid in self.health.pids if _is_tracker(pid)]
        if not trackers:
            self._kill_group(host)
            return
        for pid in {host, *self.health.pids}.difference(trackers):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        asyncio.get_running_loop().call_later(_TRACKER_S, self._kill_group, host)

    def _kill_group(self, host: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(host, signal.SIGKILL)
        self._killed.set()

    # --- the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        streams = self._streams
        for kind, number, payload in self._splitter.feed(data):
            if kind == frames.PIECE:
                if (stream := streams.get(number)) is not None:
                    stream.pieces.append(payload)
                    stream.changed()
            else:
                self._received(kind, number, payload)

    def connection_lost(self, _exc: Exception | None) -> None:
        """Called by the event loop: the host has died, or we have closed it."""
        self._end(self._log.last_words("vLLM's process has ended"))

    def pause_writing(self) -> None:
        """Called by the event loop: the host does not read as fast as we write."""
        self._room.clear()

    def resume_writing(self) -> None:
        """Called by the event loop."""
        self._room.set()

    def _received(self, kind: int, number: int, payload: bytes) -> None:
        if kind == frames.HEALTH:
            self._unheard_s = self._silent_s = 0.0
            self.health = _decode_health(payload)
        elif number:
            if (stream := self._streams.get(number)) is not None:
                stream.received(kind, payload)
        elif kind == frames.PROGRESS:
            told = msgspec.json.decode(payload, type=Progress)
            self._log.progress(told.doing, told.fraction)
        elif kind == frames.READY:
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(msgspec.json.decode(payload, type=Ready))
        elif kind == frames.FAILED:
            failed = msgspec.json.decode(payload, type=Failed)
            self._end(self._log.root_cause(failed.reason), RefusedError if failed.lasting else LoadError)
        elif kind == frames.DEAD:
            self._end(self._log.last_words("vLLM's engine core has died"))

    async def open(self, route: int, body: bytes) -> Stream:
        """Send a request. Raises EngineError when nothing was sent."""
        await self._room.wait()
        if not self.usable:
            raise EngineError(503, self.dead or "the engine is not loaded", retry_after=1, reset=True)
        self._numbers = self._numbers % 0xFFFFFFFF + 1
        stream = self._streams[self._numbers] = Stream(self._numbers)
        head = frames.header(frames.REQUEST, stream.number, len(body) + 1)
        self._transport.write(b"".join((head, bytes((route,)), body)))
        return stream

    def took(self, stream: Stream, size: int) -> None:
        """``size`` bytes of the stream were taken."""
        if taken := stream.took(size):
            self._transport.write(frames.taken(stream.number, taken))

    async def leave(self, stream: Stream, patience_s: float) -> None:
        """No more of it is wanted: stop the generation if it goes on, and wait a moment for it to have stopped."""
        try:
            if not stream.ended:
                self._transport.write(frames.frame(frames.CANCEL, stream.number))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(patience_s):
                        while not stream.ended:
                            stream.pieces.clear()
                            await stream.change()
        finally:
            self._streams.pop(stream.number, None)

    # --- signs of life

    @property
    def silent_s(self) -> float:
        """For how long neither the host nor the engine core has shown life, in seconds; what is usual counts as 0."""
        silent = self._silent_s + self.health.quiet_s
        return silent if self.ready is not None and silent > 3 * frames.HEALTH_S else 0.0

    @property
    def memory_bytes(self) -> int:
        """Memory of all its processes that they do not share with others."""
        return self._memory if self.dead is None else 0

    @property
    def pids(self) -> tuple[int, ...]:
        """Its processes."""
        return (self._process.pid, *self.health.pids) if self._process is not None and self.dead is None else ()

    async def _watching(self) -> None:
        """Notice what tells nothing of itself: the end of the process, and that time passes."""
        process = self._process
        assert process is not None
        last, turn, before = monotonic(), 0, None
        while self.dead is None:
            await asyncio.sleep(_TICK_S)
            now = monotonic()
            # When this loop itself was held up, that is not the host's silence.
            passed = min(now - last, _MAX_TICK_S)
            last = now
            self._unheard_s += passed
            used = _cpu_seconds(process.pid) if self._unheard_s > _MAX_TICK_S else None
            if used is None or before is None or used == before or self._unheard_s > _BUSY_S:
                self._silent_s += passed
            before = used
            if os.waitid(os.P_PID, process.pid, _LOOK) is not None:  # noqa: ASYNC222 - it does not wait
                await asyncio.sleep(_TICK_S)  # what it said at last may still be read
                self._end(self._log.last_words("vLLM's process has ended"))
            turn += 1
            if turn % _MEMORY_EVERY == 0:
                self._measure()

    def _measure(self) -> None:
        total = 0
        for pid in self.pids:
            with contextlib.suppress(psutil.Error):
                memory = psutil.Process(pid).memory_info()
                total += memory.rss - memory.shared
        self._memory = total


def _sweep() -> None:
    """Remove the folders of workers that were killed and could not."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _below(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


def _cpu_seconds(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def _is_tracker(pid: int) -> bool:
    try:
        return any("resource_tracker" in part for part in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
