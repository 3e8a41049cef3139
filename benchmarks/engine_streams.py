"""64 streams to vLLM: through Cypria beside vLLM's own server, `python -m benchmarks.engine_streams [--rounds N]`.

Two models with random weights, served with the same arguments by both: the demo's (1.2 million parameters, a token of
64 streams costs half a millisecond of CPU, so that this is mostly a measure of what surrounds the engine) and one of 50
million, where the engine costs what it costs on a machine that is kept busy by it. 128 tokens each, none ends early.

Both engines run the same way (one process, threads that do not spin: vLLM's own default on a CPU is several times
slower on two cores). Both sides are up all the time and take turns; whoever is not measured is stopped (SIGSTOP), since
an idle vLLM polls.
*Throughput*: 64 connections, each asks again as soon as it has its answer, from the first request to the last answer.
*Added TTFT*: at half of the streams, of 32 tokens and begun at random moments, so that it is not the engine's batch
that is measured; first content byte at the client, medians of a round subtracted. A machine's speed changes by the
minute, so rounds are short and many. Needs `make install-vllm`; Linux only.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import uvloop

from benchmarks.hot_path_parts import Client
from benchmarks.report import Figure, figure, percentile, say, table
from services._runtime.nats_server import free_port
from services._runtime.server import die_with_parent
from services.inference.adapters.vllm_environment import interpreter
from tests.harness import eventually
from tests.system import System, running

STREAMS = 64
TOKENS = 128
TTFT_TOKENS = 32
ENGINE_ARGS = {"max_model_len": 512, "enforce_eager": True, "max_num_seqs": STREAMS}
MODELS = Path(__file__).parents[1] / "infra" / "models"
THROUGHPUT, ADDED_TTFT_MS = 0.95, 5.0


@dataclass
class Side:
    """One of the two servers: where it listens, the key it wants, and its processes."""

    name: str
    port: int
    process: psutil.Process
    key: str = "none"

    def tree(self) -> list[psutil.Process]:
        """It and all its descendants."""
        return [self.process, *self.process.children(recursive=True)]

    def send(self, number: int) -> None:
        """A signal to every process of it."""
        for one in self.tree():
            with contextlib.suppress(psutil.Error):
                one.send_signal(number)

    def cpu_s(self) -> float:
        """Seconds of CPU so far."""
        used = 0.0
        for one in self.tree():
            with contextlib.suppress(psutil.Error):
                used += sum(one.cpu_times()[:2])
        return used

    def request(self, tokens: int = TOKENS) -> bytes:
        """A whole HTTP request for a stream of so many tokens."""
        body = json.dumps(
            {
                "model": "m", "stream": True, "max_tokens": tokens, "ignore_eos": True, "temperature": 0,
                "messages": [{"role": "user", "content": "Tell me a story about a fox."}],
            }
        ).encode()  # fmt: skip
        return (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (self.port, self.key.encode(), len(body), body)
        )


@dataclass
class Seen:
    """What the rounds of one side gave."""

    rates: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    firsts_ms: list[float] = field(default_factory=list)


def make_model(folder: Path, *, hidden: int, layers: int) -> Path:
    """A Llama of random weights with the demo's tokenizer."""
    script = (
        "import sys, json, shutil, torch, transformers\n"
        "base, target, hidden, layers = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])\n"
        "config = transformers.AutoConfig.from_pretrained(base)\n"
        "config.hidden_size, config.num_hidden_layers, config.intermediate_size = hidden, layers, hidden * 4\n"
        "config.num_attention_heads = config.num_key_value_heads = hidden // 64\n"
        "torch.manual_seed(7)\n"
        "transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(target)\n"
        "[shutil.copy(f'{base}/{n}', target) for n in ('tokenizer.json', 'tokenizer_config.json')]\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-c", script, str(MODELS / "stable"), str(folder), str(hidden), str(layers)],
        check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return folder


@contextlib.asynccontextmanager
async def own_server(model: Path, folder: Path) -> AsyncIterator[Side]:
    """vLLM's own OpenAI server."""
    port, python = free_port(), interpreter(None)
    environment = {
        **os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1", "OMP_WAIT_POLICY": "PASSIVE", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }  # fmt: skip
    arguments = [
        "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", str(model), "--served-model-name", "m",
        "--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log", "--enforce-eager",
        "--max-model-len", "512", "--max-num-seqs", str(STREAMS), "--distributed-executor-backend", "uni",
    ]  # fmt: skip
    with (folder / "vllm.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            [python, *arguments], env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True,
            preexec_fn=lambda: die_with_parent(signal.SIGKILL),  # noqa: PLW1509
        )  # fmt: skip
    try:
        side = Side("vLLM's server", port, psutil.Process(process.pid))
        async with asyncio.timeout(300):
            while not await answers(side):
                assert process.poll() is None, (folder / "vllm.log").read_text()[-3000:]
                await asyncio.sleep(0.3)
        yield side
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(15)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


async def answers(side: Side) -> bool:
    """Whether a request is served."""
    try:
        async with Client(side.port, 1) as client:
            await client.pool[0].ask(side.request(2))
            return client.pool[0].status == 200
    except OSError:
        return False


@contextlib.asynccontextmanager
async def cypria(model: Path, folder: Path) -> AsyncIterator[Side]:
    """`cypria up` with the engine in it."""
    entry = {
        "name": "m", "engine": "vllm", "path": str(model), "engine_args": ENGINE_ARGS, "max_concurrency": STREAMS,
        "max_queue": 4 * STREAMS,
    }  # fmt: skip
    async with running(folder, {"models": [entry]}, ready_s=300) as system:
        side = Side("Cypria", system.port, psutil.Process(pid_of(system)), system.key)
        await eventually(lambda: answers(side), 60)
        try:
            yield side
        finally:
            side.send(signal.SIGCONT)


def pid_of(system: System) -> int:
    """Of `cypria up` itself."""
    assert system.process
    return system.process.pid


async def throughput(side: Side, seen: Seen, each: int) -> None:
    """64 streams, ``each`` times."""
    data, began, used = side.request(), time.perf_counter(), side.cpu_s()
    async with Client(side.port, STREAMS) as client:

        async def drive(index: int) -> None:
            for _ in range(each):
                await client.pool[index].ask(data)
                assert client.pool[index].status == 200, bytes(client.pool[index].buffer[:500])

        await asyncio.gather(*map(drive, range(STREAMS)))
    tokens = STREAMS * TOKENS * each
    seen.rates.append(tokens / (time.perf_counter() - began))
    seen.cpu_us.append((side.cpu_s() - used) / tokens * 1e6)


async def first_tokens(side: Side, seen: Seen, each: int, rate: float) -> None:
    """Half as many streams, each begun after a random pause; ``rate``: what 64 of them reached, tokens per second."""
    data, firsts = side.request(TTFT_TOKENS), list[float]()
    pause = STREAMS * TTFT_TOKENS / rate
    chance = random.Random(11)

    async def drive() -> None:
        for _ in range(each * TOKENS // TTFT_TOKENS):
            await asyncio.sleep(chance.random() * pause)
            async with Client(side.port, 1) as client:  # a connection that waited may be closed in this moment
                began = time.perf_counter()
                await client.pool[0].ask(data)
                firsts.append(client.pool[0].first_at - began)

    await asyncio.gather(*(drive() for _ in range(STREAMS // 2)))
    seen.firsts_ms.append(percentile(firsts, 0.5) * 1000)


async def settled(side: Side) -> None:
    """After it was stopped: until it serves as before."""
    side.send(signal.SIGCONT)
    await eventually(lambda: answers(side), 30)


async def compare(name: str, model: Path, folder: Path, rounds: int, each: int) -> list[Figure]:
    """Both sides in turn on one model."""
    say(f"engine_streams: {name}: starting vLLM's own server, then Cypria with vLLM")
    seen: dict[str, Seen] = {}
    async with own_server(model, folder) as own:
        own.send(signal.SIGSTOP)
        async with cypria(model, folder) as ours:
            ours.send(signal.SIGSTOP)
            for number in range(-1, rounds):
                for side in (own, ours) if number % 2 else (ours, own):
                    kept = seen.setdefault(side.name, Seen()) if number >= 0 else Seen()
                    await settled(side)
                    await throughput(side, kept, each if number >= 0 else 1)
                    await first_tokens(side, kept, each if number >= 0 else 1, kept.rates[-1])
                    side.send(signal.SIGSTOP)
                    say(
                        f"engine_streams: {name}: round {number + 1} of {rounds}, {side.name}: "
                        f"{kept.rates[-1]:,.0f} tokens/s, {kept.cpu_us[-1]:.0f} us of CPU a token, "
                        f"first token {kept.firsts_ms[-1]:.1f} ms"
                    )
            own.send(signal.SIGCONT)
    return figures(name, seen[own.name], seen[ours.name])


def figures(name: str, own: Seen, ours: Seen) -> list[Figure]:
    """Ratios and differences, round by round."""
    ratios = [b / a for a, b in zip(own.rates, ours.rates, strict=True)]
    added = [b - a for a, b in zip(own.firsts_ms, ours.firsts_ms, strict=True)]
    return [
        figure(f"{name}: vLLM's own server, 64 streams", own.rates, "tokens/s", higher=True),
        figure(f"{name}: through Cypria, 64 streams", ours.rates, "tokens/s", higher=True),
        figure(f"{name}: share of vLLM's own server", ratios, must=THROUGHPUT, aim=1.0, higher=True),
        figure(f"{name}: CPU a token, vLLM's own server", own.cpu_us, "us"),
        figure(f"{name}: CPU a token, through Cypria", ours.cpu_us, "us"),
        figure(f"{name}: added TTFT p50", added, "ms", must=ADDED_TTFT_MS),
    ]


async def measure(*, rounds: int = 8, each: int = 2, sizes: Sequence[str] = ("1M", "50M")) -> list[Figure]:
    """Every size, one after the other."""
    found: list[Figure] = []
    try:
        interpreter(None)
    except ValueError as exc:
        say(f"engine_streams: left out: {exc}")
        return found
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="cypria-bench-") as text:
            folder = Path(text)
            if size == "1M":
                model, times = MODELS / "stable", each
            else:
                model, times = make_model(folder / "model", hidden=640, layers=8), max(1, each // 2)
            found += await compare(size, model, folder, rounds, times)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_streams", description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--each", type=int, default=2, help="streams on each connection in a round")
    parser.add_argument("--sizes", nargs="+", default=["1M", "50M"], choices=["1M", "50M"])
    options = parser.parse_args()
    print(table(uvloop.run(measure(rounds=options.rounds, each=options.each, sizes=options.sizes))))


if __name__ == "__main__":
    main()
