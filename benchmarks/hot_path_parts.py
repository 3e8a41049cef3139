"""What `benchmarks.hot_path` puts around the router: an upstream, a worker that only echoes, and a client.

As a process of its own: ``python -m benchmarks.hot_path_parts upstream PORT`` or ``echo URL PASSWORD MODEL...``.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from typing import Self

import nats
import uvloop
from nats.aio.msg import Msg

from schemas import subjects
from schemas.v1.inference import (
    CHUNK,
    FINAL,
    HEAD,
    HEARTBEAT_S,
    SINGLE,
    Final,
    Heartbeat,
    InferRequest,
    ReplyHead,
    SingleHead,
    encode,
    pack,
    unpack,
)

CHUNKS = 100
PACE_S = 0.02
TEXT = "word " * 100
REPLY = json.dumps(
    {
        "id": "chatcmpl-1", "object": "chat.completion", "model": "echo",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 100, "total_tokens": 200},
    }
).encode()  # fmt: skip
EVENT = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
END = (
    b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":100,"completion_tokens":100}}\n\ndata: [DONE]\n\n'
)
SINGLE_FRAME = pack(SINGLE, SingleHead(ReplyHead(), Final(ttft_us=50, prompt_tokens=100, completion_tokens=100)), REPLY)
HEAD_FRAME = pack(HEAD, ReplyHead(content_type="text/event-stream"), EVENT)
CHUNK_FRAME = CHUNK + EVENT
FINAL_FRAME = pack(FINAL, Final(ttft_us=50, itl_us=10, prompt_tokens=100, completion_tokens=100), END)


def request(model: str, *, stream: bool, paced: bool, port: int, key: str = "bench-key") -> bytes:
    """A whole HTTP request of about 0.75 KB."""
    body = json.dumps(
        {
            "model": model, "stream": stream, "paced": paced, "messages": [{"role": "user", "content": "x" * 600}],
        },
        separators=(",", ":"),
    ).encode()  # fmt: skip
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (port, key.encode(), len(body), body)
    )


class Upstream(asyncio.Protocol):
    """An engine that answers at once; a stream has CHUNKS events, 20 ms apart when the body says ``paced``."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            if len(self.buffer) < end + 4 + length:
                return
            body, self.buffer = self.buffer[end + 4 : end + 4 + length], self.buffer[end + 4 + length :]
            self.answer(b'"stream":true' in body, b'"paced":true' in body)

    def answer(self, stream: bool, paced: bool) -> None:
        if not stream:
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(REPLY)
            self.transport.write(head + REPLY)
            return
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        if paced:
            asyncio.get_running_loop().create_task(self.pace())
            return
        for _ in range(CHUNKS):
            self.chunk(EVENT)
        self.finish()

    async def pace(self) -> None:
        for _ in range(CHUNKS):
            self.chunk(EVENT)
            await asyncio.sleep(PACE_S)
        self.finish()

    def chunk(self, data: bytes) -> None:
        self.transport.write(b"%x\r\n%s\r\n" % (len(data), data))

    def finish(self) -> None:
        self.chunk(END)
        self.transport.write(b"0\r\n\r\n")


async def serve_upstream(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await server.serve_forever()


async def serve_echo(url: str, password: str, models: Sequence[str]) -> None:
    """A worker that answers frames with frames: what the router costs without an engine's share."""
    nc = await nats.connect(
        url, user="inference", password=password, inbox_prefix="_INBOX.inference", pending_size=64 << 20
    )
    granted_to: dict[str, asyncio.Semaphore] = {}

    async def stream(reply: str, head: InferRequest, paced: bool) -> None:
        credit = granted_to[head.id] = asyncio.Semaphore(head.credit)
        for i in range(CHUNKS):
            await credit.acquire()
            await nc.publish(reply, CHUNK_FRAME if i else HEAD_FRAME)
            if paced:
                await asyncio.sleep(PACE_S)
        del granted_to[head.id]
        await nc.publish(reply, FINAL_FRAME)

    tasks: set[asyncio.Task[None]] = set()

    async def received(msg: Msg) -> None:
        head, body = unpack(msg.data, InferRequest)
        if not head.stream:
            await nc.publish(msg.reply, SINGLE_FRAME)
            return
        task = asyncio.create_task(stream(msg.reply, head, b'"paced":true' in body))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def flow(msg: Msg) -> None:
        for request_id, granted in json.loads(msg.data).get("credit", {}).items():
            for _ in range(granted if request_id in granted_to else 0):
                granted_to[request_id].release()

    worker = "w000000ec"
    for model in models:
        await nc.subscribe(subjects.infer(model, worker), cb=received, pending_msgs_limit=0, pending_bytes_limit=0)
    await nc.subscribe(subjects.flow(worker), cb=flow)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        for model in models:
            beat = Heartbeat(model=model, worker=worker, state="ready", capacity=10_000, free=10_000)
            await nc.publish(subjects.heartbeat(model, worker), encode(beat))
        await asyncio.sleep(HEARTBEAT_S)


class Connection(asyncio.Protocol):
    """One keep-alive connection of the client. `ask` resolves at the end of the answer."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.done: asyncio.Future[None] | None = None
        self.first_at = 0.0
        self.expected = -1
        self.status = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, _exc: Exception | None) -> None:
        if self.done and not self.done.done():
            self.done.set_exception(ConnectionError("closed in the middle of an answer"))

    async def ask(self, data: bytes) -> None:
        self.buffer.clear()
        self.expected, self.first_at = -1, 0.0
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(data)
        await self.done

    def data_received(self, data: bytes) -> None:
        buffer = self.buffer
        buffer += data
        if not self.first_at and b"data: " in data:
            self.first_at = time.perf_counter()
        if self.expected < 0:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            self.status = int(buffer[9:12])
            head = bytes(buffer[:end]).lower()
            at = head.find(b"content-length:")
            self.expected = 0 if at < 0 else end + 4 + int(head[at + 15 :].split(b"\r\n")[0])
        ended = buffer.endswith(b"0\r\n\r\n") if self.expected == 0 else len(buffer) >= self.expected
        if ended and self.done and not self.done.done():
            self.done.set_result(None)


class Client:
    """Many connections to one port."""

    def __init__(self, port: int, connections: int) -> None:
        self.port = port
        self.count = connections
        self.pool: list[Connection] = []

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for _ in range(self.count):
            _, connection = await loop.create_connection(Connection, "127.0.0.1", self.port)
            self.pool.append(connection)
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self.pool:
            connection.done = None
            connection.transport.close()

    async def saturate(self, data: bytes, seconds: float) -> tuple[int, float]:
        """Each connection asks again as soon as it has its answer; (answers, seconds)."""
        began = time.perf_counter()
        until = began + seconds
        counts = [0] * len(self.pool)

        async def drive(index: int, connection: Connection) -> None:
            while time.perf_counter() < until:
                await connection.ask(data)
                assert connection.status == 200, bytes(connection.buffer[:500])
                counts[index] += 1

        await asyncio.gather(*(drive(i, connection) for i, connection in enumerate(self.pool)))
        return sum(counts), time.perf_counter() - began

    async def total(self, data: bytes, count: int) -> None:
        """So many requests over all connections."""
        left = iter(range(count))

        async def drive(connection: Connection) -> None:
            for _ in left:
                await connection.ask(data)
                assert connection.status == 200, bytes(connection.buffer[:500])

        await asyncio.gather(*map(drive, self.pool))

    async def paced(self, data: bytes, rate: float, seconds: float) -> list[float]:
        """Open loop: requests at a fixed rate whatever becomes of them; latencies from when each was due."""
        latencies: list[float] = []
        free = list(self.pool)

        async def one(connection: Connection, due: float) -> None:
            await connection.ask(data)
            latencies.append(time.perf_counter() - due)
            free.append(connection)

        began = time.perf_counter()
        tasks = []
        for i in range(int(rate * seconds)):
            due = began + i / rate
            delay = due - time.perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
            if not free:
                raise RuntimeError("every connection is busy: this rate is above what it can do")
            tasks.append(asyncio.create_task(one(free.pop(), due)))
        await asyncio.gather(*tasks)
        return latencies

    async def streams(self, data: bytes, rounds: int, gap_s: float) -> tuple[int, float, list[float]]:
        """``rounds`` streams on each connection, begun ``gap_s`` apart; (chunks, seconds, times to first chunk)."""
        firsts: list[float] = []

        async def drive(index: int, connection: Connection) -> None:
            await asyncio.sleep(index * gap_s)
            for _ in range(rounds):
                began = time.perf_counter()
                await connection.ask(data)
                firsts.append(connection.first_at - began)

        began = time.perf_counter()
        await asyncio.gather(*(drive(i, connection) for i, connection in enumerate(self.pool)))
        return rounds * len(self.pool) * CHUNKS, time.perf_counter() - began, firsts


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        if sys.argv[1] == "upstream":
            uvloop.run(serve_upstream(int(sys.argv[2])))
        else:
            uvloop.run(serve_echo(sys.argv[2], sys.argv[3], sys.argv[4:]))
