"""A worker that speaks the frame protocol from a script: every way of answering, and of not answering.

What it does with a request is the body's own field ``mode`` (unknown fields reach a worker untouched), else its
``mode``: ``ok``, ``status:500``, ``reset``, ``late_reset`` (once ``told`` is set), ``hang``, ``die`` (silent at once, heartbeats included), ``die_mid``,
``mid_error``, ``slow:SECONDS`` (pause before each chunk), ``on_and_on:SECONDS`` (likewise, until ``told`` is set), ``flood:N`` (so many chunks), ``big:N`` (so many bytes).

Alone: ``python -m tests.fakes.frame_worker URL PASSWORD MODEL WORKER [MODE]``.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import nats
from nats.aio.msg import Msg

from schemas import subjects
from schemas.v1.inference import (
    CHUNK,
    FINAL,
    HEAD,
    HEARTBEAT_S,
    MAX_PIECE,
    SINGLE,
    Final,
    Heartbeat,
    InferRequest,
    ReplyHead,
    SingleHead,
    decode_flow,
    encode,
    pack,
    unpack,
)

CHUNKS = 4


class FrameWorker:
    """One worker of one model on a connection of its own. ``beats`` False silences it as death would.

    ``load`` and ``queued`` are what its heartbeats say, by default what it really has.
    """

    def __init__(
        self, model: str, worker: str, mode: str = "ok", *, timeout_ms: int = 60_000, state: str = "ready"
    ) -> None:
        self.model = model
        self.worker = worker
        self.mode = mode
        self.timeout_ms = timeout_ms
        self.state = state
        self.generation = 0
        self.free = 8
        self.capacity = 8
        self.load: int | None = None
        self.queued = 0
        self.beats = True
        self.bodies: list[bytes] = []
        self.requests: list[InferRequest] = []
        self.cancelled: list[str] = []
        self.credited: dict[str, int] = {}
        self.keepalives = 0
        self.sent = 0
        self.running = 0
        self.told = asyncio.Event()
        self._credit: dict[str, asyncio.Semaphore] = {}
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._ticker: asyncio.Task[None] | None = None

    async def start(self, nc: nats.NATS) -> "FrameWorker":
        self.nc = nc
        await nc.subscribe(subjects.infer(self.model, self.worker), cb=self._request)
        await nc.subscribe(subjects.flow(self.worker), cb=self._flow)
        await nc.flush()
        self._ticker = asyncio.create_task(self._beat())
        return self

    async def stop(self) -> None:
        self.beats = False
        tasks = [*self._jobs.values(), *([self._ticker] if self._ticker else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not self.nc.is_closed:
            await self.nc.close()

    async def _beat(self) -> None:
        while True:
            if self.beats and self.nc.is_connected:
                beat = Heartbeat(
                    model=self.model, worker=self.worker, state=self.state, digest="sha256:fake", engine="fake",
                    capacity=self.capacity, free=self.free, queued=self.queued,
                    running=self.running if self.load is None else self.load, timeout_ms=self.timeout_ms, total_timeout_ms=600_000,
                    generation=self.generation,
                )  # fmt: skip
                await self.nc.publish(subjects.heartbeat(self.model, self.worker), encode(beat))
            await asyncio.sleep(HEARTBEAT_S)

    async def _flow(self, msg: Msg) -> None:
        if not self.beats:
            return
        flow = decode_flow(msg.data)
        self.keepalives += 1
        for request_id, credit in flow.credit.items():
            self.credited[request_id] = self.credited.get(request_id, 0) + credit
            for _ in range(credit if request_id in self._credit else 0):
                self._credit[request_id].release()
        for request_id in flow.cancel:
            self.cancelled.append(request_id)
            if job := self._jobs.get(request_id):
                job.cancel()

    async def _request(self, msg: Msg) -> None:
        head, body = unpack(msg.data, InferRequest)
        if not self.beats:
            return
        self.requests.append(head)
        self.bodies.append(body)
        self._credit[head.id] = asyncio.Semaphore(head.credit)
        job = asyncio.create_task(self._answer(msg.reply, head, body))
        self._jobs[head.id] = job
        job.add_done_callback(lambda _: self._jobs.pop(head.id, None))

    async def _answer(self, reply: str, head: InferRequest, body: bytes) -> None:
        mode, _, argument = str(json.loads(body).get("mode") or self.mode).partition(":")
        self.running += 1
        try:
            await getattr(self, f"_do_{mode}")(reply, head, argument)
        finally:
            self.running -= 1

    async def _send(self, reply: str, payload: bytes) -> None:
        await self.nc.publish(reply, payload)

    async def _single(self, reply: str, status: int, content: Any, final: Final, retry_after: int = 0) -> None:
        head = SingleHead(ReplyHead(status, retry_after=retry_after), final)
        await self._send(reply, pack(SINGLE, head, json.dumps(content).encode()))

    async def _do_ok(self, reply: str, head: InferRequest, _: str) -> None:
        if head.stream:
            await self._chunks(reply, head, lambda sent: sent < CHUNKS, 0.0)
            return
        content = {"model": self.model, "worker": self.worker, "choices": [{"message": {"content": "hello"}}]}
        final = Final(ttft_us=900, prompt_tokens=3, completion_tokens=5, cost_nano=70, digest="sha256:fake")
        await self._single(reply, 200, content, final)

    async def _do_status(self, reply: str, _: InferRequest, status: str) -> None:
        error = {"error": {"message": f"engine says {status}", "type": "engine_error", "param": None, "code": None}}
        await self._single(reply, int(status), error, Final(outcome="error_before_first_token"))

    async def _do_reset(self, reply: str, *_: Any) -> None:
        error = {"error": {"message": "queue full", "type": "overloaded", "param": None, "code": None}}
        await self._single(reply, 503, error, Final(outcome="rejected", reset=True), retry_after=7)

    async def _do_late_reset(self, reply: str, head: InferRequest, _: str) -> None:
        await self.told.wait()
        await self._do_reset(reply, head, "")

    async def _do_hang(self, *_: Any) -> None:
        await asyncio.Event().wait()

    async def _do_die(self, *_: Any) -> None:
        self.beats = False

    async def _do_die_mid(self, reply: str, head: InferRequest, _: str) -> None:
        await self._send(reply, pack(HEAD, self._stream_head(head), self._event(0)))
        await self._send(reply, CHUNK + self._event(1))
        self.beats = False

    async def _do_mid_error(self, reply: str, head: InferRequest, _: str) -> None:
        await self._send(reply, pack(HEAD, self._stream_head(head), self._event(0)))
        error = b'data: {"error": {"message": "engine broke", "type": "engine_error"}}\n\n'
        await self._send(reply, pack(FINAL, Final(outcome="error_mid_stream"), error))

    async def _do_slow(self, reply: str, head: InferRequest, pause: str) -> None:
        await self._chunks(reply, head, lambda sent: sent < CHUNKS, float(pause))

    async def _do_on_and_on(self, reply: str, head: InferRequest, pause: str) -> None:
        await self._chunks(reply, head, lambda sent: not sent or not self.told.is_set(), float(pause))

    async def _do_flood(self, reply: str, head: InferRequest, count: str) -> None:
        await self._chunks(reply, head, lambda sent: sent < int(count), 0.0)

    async def _do_big(self, reply: str, head: InferRequest, size: str) -> None:
        left = int(size)
        await self._send(reply, pack(HEAD, ReplyHead(), b"x" * min(left, MAX_PIECE)))
        left -= min(left, MAX_PIECE)
        while left > MAX_PIECE:
            await self._credit[head.id].acquire()
            await self._send(reply, CHUNK + b"x" * MAX_PIECE)
            left -= MAX_PIECE
        await self._send(reply, pack(FINAL, Final(), b"x" * left))

    async def _chunks(self, reply: str, head: InferRequest, more: Callable[[int], bool], pause_s: float) -> None:
        count = 0
        while more(count):
            await asyncio.sleep(pause_s)
            await self._credit[head.id].acquire()
            frame = CHUNK + self._event(count) if count else pack(HEAD, self._stream_head(head), self._event(count))
            await self._send(reply, frame)
            self.sent += 1
            count += 1
        final = Final(ttft_us=800, itl_us=200, prompt_tokens=3, completion_tokens=count, digest="sha256:fake")
        await self._send(reply, pack(FINAL, final, b"data: [DONE]\n\n"))

    def _stream_head(self, head: InferRequest) -> ReplyHead:
        return ReplyHead(content_type="text/event-stream" if head.stream else "application/json")

    def _event(self, i: int) -> bytes:
        return f'data: {{"model": "{self.model}", "choices": [{{"delta": {{"content": "w{i} "}}}}]}}\n\n'.encode()


async def _main(url: str, password: str, model: str, worker: str, mode: str = "ok") -> None:
    nc = await nats.connect(
        url, user="inference", password=password, inbox_prefix="_INBOX.inference", max_reconnect_attempts=-1,
        reconnect_time_wait=0.1,
    )  # fmt: skip
    await FrameWorker(model, worker, mode).start(nc)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
