"""Other gateways beside ours in one run: `python -m benchmarks.peers --install`, then `python -m benchmarks.peers`.

vllm-router and smg (Rust) and LiteLLM (Python, 2 workers) are installed from PyPI into `.venv-peers`, a virtual
environment of their own; what cannot be installed is left out. All gateways and ours stand before engines that
answer at once, with the same requests from the same client, in interleaved rounds: only ratios within a run mean
anything. Ours is measured twice: ``echo``, to a worker that answers by itself (router and bus, with assignment,
breaker and facts), and ``openai``, through the real inference worker and one more HTTP hop to the engine, which is
the hop that the others make.

Saturation is by wrk (Debian's) where it is installed, else by a Python client; latency by an open-loop client at 200
requests/s, streams by 64 paced ones. CPU is user and system time of all of a gateway's processes from /proc; for us
nats-server is in it, and the inference worker in ``openai``.
"""

import argparse
import asyncio
import contextlib
import json
import math
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import uvloop
import yaml

from benchmarks import hot_path
from benchmarks.hot_path_parts import Client, Upstream, request
from benchmarks.report import Figure, figure, percentile, say, table
from services._runtime.nats_server import free_port
from services._runtime.server import die_with_parent
from tests.harness import environment, eventually

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv-peers"
REQUIREMENTS = {
    "vllm-router": "vllm-router>=0.1.17,<0.2",
    "smg": "smg>=1.13,<2",
    # 1.107.0 was a compromised release.
    "litellm": "litellm[proxy]>=1.105,!=1.107.0,<2",
}
REFUSED = {"litellm": {"1.107.0"}}
MODEL = "bench"
OURS = ("echo", "openai")
CONNECTIONS = 64
PACED_CONNECTIONS = 512
"""At 200/s a gateway may be stopped for two seconds before the open-loop client has none left."""
FEW_CONNECTIONS = 32
"""LiteLLM's: with more it only queues."""
LITELLM_ENVIRONMENT = {
    "LITELLM_LOG": "ERROR",
    "LITELLM_TELEMETRY": "False",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it asks the network when it starts
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # on loopback, like the other peers without a key
}
SLOW_FACTOR = 2
"""It is measured for longer: on a busy machine hardly a request ends in a few seconds."""
WRK_SCRIPT = 'wrk.method = "POST"\nwrk.body = {body}\n{headers}\n'


class Engine(Upstream):
    """The hot path's engine, which also answers the questions that gateways ask before they send requests."""

    def data_received(self, data: bytes) -> None:
        if not self.buffer and data.startswith(b"GET "):
            found = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}], "model_path": MODEL})
            head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(found)}\r\n\r\n"
            self.transport.write(head.encode() + found.encode())
            return
        super().data_received(data)


async def serve_engine(port: int) -> None:
    """Run an `Engine` until killed."""
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port)
    print("ready", flush=True)
    await server.serve_forever()


def install() -> None:
    """Make `.venv-peers` and install each peer that can be."""
    if not (VENV / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    for name, requirement in REQUIREMENTS.items():
        say(f"peers: installing {requirement}")
        done = subprocess.run(
            [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", requirement],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            say(f"peers: {name} could not be installed: {done.stderr.strip().splitlines()[-1:]}")


def version(name: str) -> str | None:
    """The installed version of a peer; None when it is not there or must not run."""
    found = sorted(VENV.glob(f"lib/python*/site-packages/{name.replace('-', '_')}-*.dist-info"))
    if not found or not (VENV / "bin" / name).exists():
        return None
    number = found[-1].name.removesuffix(".dist-info").rpartition("-")[2]
    return None if number in REFUSED.get(name, set()) else number


def installed() -> list[str]:
    """Peers that can run here."""
    return [name for name in REQUIREMENTS if version(name)]


def command(name: str, port: int, engine: int, folder: Path) -> list[str]:
    """How a peer is started: its defaults, round robin over one engine, quiet."""
    binary, url = str(VENV / "bin" / name), f"http://127.0.0.1:{engine}"
    common = ["--host", "127.0.0.1", "--port", str(port)]
    if name == "litellm":
        path = folder / "litellm.yaml"
        model = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"}
        path.write_text(yaml.safe_dump({"model_list": [{"model_name": MODEL, "litellm_params": model}]}))
        return [binary, *common, "--config", str(path), "--num_workers", "2"]
    rust = ["--worker-urls", url, "--policy", "round_robin", "--prometheus-port", str(free_port())]
    level = ["--log-level", "error"]
    return [binary, *(["launch"] if name == "smg" else []), *common, *rust, *level]


@contextlib.contextmanager
def running(arguments: list[str], log: Path) -> Iterator[int]:
    """A peer's process; its id."""
    with log.open("ab") as sink:
        child = subprocess.Popen(
            arguments, stdout=sink, stderr=sink, cwd=log.parent,
            env=environment(**LITELLM_ENVIRONMENT),
            preexec_fn=lambda: die_with_parent(signal.SIGKILL), start_new_session=True,  # noqa: PLW1509
        )  # fmt: skip
    try:
        yield child.pid
    finally:
        family = [*psutil.Process(child.pid).children(recursive=True)] if child.poll() is None else []
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(10)
        for one in [*family, child]:
            with contextlib.suppress(psutil.Error, OSError):
                one.kill()
        child.wait(10)


@dataclass(frozen=True)
class Target:
    """Something that answers requests: its port, the model to ask for and the processes whose CPU counts."""

    name: str
    port: int
    model: str
    pids: tuple[int, ...]

    def data(self, *, stream: bool = False, paced: bool = False) -> bytes:
        """A request of the hot path's benchmark."""
        return request(self.model, stream=stream, paced=paced, port=self.port)

    def cpu(self) -> float:
        """CPU seconds of all its processes so far."""
        total = 0.0
        for pid in self.pids:
            with contextlib.suppress(psutil.Error, OSError):
                family = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
                total += sum(hot_path.cpu_seconds(one) for one in family)
        return total


def answers(target: Target) -> bool:
    """Whether a plain request is answered."""
    head, _, body = target.data().partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    url = f"http://127.0.0.1:{target.port}/v1/chat/completions"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


async def by_wrk(target: Target, connections: int, seconds: float, folder: Path) -> float:
    """Requests/s by wrk. Raises RuntimeError when some were not answered well."""
    head, _, body = target.data().partition(b"\r\n\r\n")
    lines = [line.split(": ", 1) for line in head.decode().split("\r\n")[1:]]
    kept = [f"wrk.headers[{json.dumps(n)}] = {json.dumps(v)}" for n, v in lines if n not in {"Host", "Content-Length"}]
    script = folder / f"{target.name}.lua"
    script.write_text(WRK_SCRIPT.format(body=json.dumps(body.decode()), headers="\n".join(kept)))
    url = f"http://127.0.0.1:{target.port}/v1/chat/completions"
    run = await asyncio.create_subprocess_exec(
        "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "20s", "-s", str(script), url,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    text = (await run.communicate())[0].decode()
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    if rate is None or "Non-2xx" in text:
        raise RuntimeError(f"{target.name}: {text}")
    return float(rate.group(1))


async def saturate(target: Target, seconds: float, folder: Path) -> tuple[float, float]:
    """(requests/s, CPU seconds per 1,000 requests)."""
    slow = target.name == "litellm"
    connections = FEW_CONNECTIONS if slow else CONNECTIONS
    seconds *= SLOW_FACTOR if slow else 1
    if shutil.which("wrk"):
        await by_wrk(target, connections, 1, folder)
        before = target.cpu()
        rate = await by_wrk(target, connections, seconds, folder)
        count = rate * seconds
    else:
        async with Client(target.port, connections) as client:
            await client.saturate(target.data(), 1)
            before = target.cpu()
            done, took = await client.saturate(target.data(), seconds)
            rate, count = done / took, float(done)
    return rate, 1000 * (target.cpu() - before) / count if count else math.nan


class Found:
    """Values by quantity and target, one for each round."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], list[float]] = {}

    def add(self, quantity: str, target: str, value: float) -> None:
        """One round's value."""
        self.values.setdefault((quantity, target), []).append(value)

    def of(self, quantity: str, target: str) -> list[float]:
        """All rounds' values."""
        return self.values.get((quantity, target), [])


async def one_round(targets: list[Target], found: Found, seconds: float, folder: Path) -> None:
    """Every measurement of every target, by measurement."""
    for target in targets:
        rate, cpu = await saturate(target, seconds, folder)
        found.add("rps", target.name, rate)
        found.add("cpu", target.name, cpu)
    fast = [target for target in targets if target.name != "litellm"]  # 200/s and 64 streams are above its capacity
    for target in fast:
        async with Client(target.port, PACED_CONNECTIONS) as client:
            await client.paced(target.data(), 200, 0.5)
            latencies = await client.paced(target.data(), 200, seconds)
        for name, q in (("p50", 0.5), ("p99", 0.99)):
            found.add(name, target.name, 1000 * percentile(latencies, q))
    for target in fast:
        async with Client(target.port, CONNECTIONS) as client:
            _, _, firsts = await client.streams(target.data(stream=True, paced=True), 2, 0.03)
        for name, q in (("ttft p50", 0.5), ("ttft p99", 0.99)):
            found.add(name, target.name, 1000 * percentile(firsts, q))


@contextlib.asynccontextmanager
async def gateways(folder: Path) -> AsyncIterator[list[Target]]:
    """Ours and every installed peer, up and answering."""
    async with hot_path.system() as ours:
        with contextlib.ExitStack() as stack:
            own = {"echo": ("router", "nats-server"), "openai": ("router", "nats-server", "worker")}
            targets = [Target("direct", ours.ports["upstream"], MODEL, (ours.pids["upstream"],))]
            targets += [
                Target(name, ours.ports["router"], f"{name}-a", tuple(ours.pids[pid] for pid in own[name]))
                for name in OURS
            ]
            engine = free_port()
            stack.enter_context(hot_path.process("benchmarks.peers", "--engine", str(engine), ready=True))
            for name in installed():
                port, log = free_port(), folder / f"{name}.log"
                pid = stack.enter_context(running(command(name, port, engine, folder), log))
                target = Target(name, port, MODEL, (pid,))
                try:
                    await eventually(lambda t=target: asyncio.to_thread(answers, t), 90, 0.3)
                except AssertionError:
                    say(f"peers: {name} did not answer and is left out:\n{log.read_text()[-1500:]}")
                else:
                    say(f"peers: {name} {version(name)} is up")
                    targets.append(target)
            yield targets


async def measure(*, rounds: int = 5, seconds: float = 3.0) -> list[Figure]:
    """All rounds; figures of ours against each peer. Empty when no peer is installed."""
    if not installed():
        say("peers: none installed; `make bench-peers` installs them")
        return []
    found = Found()
    with tempfile.TemporaryDirectory(prefix="cypria-peers-") as name:
        folder = Path(name)
        async with gateways(folder) as targets:
            for number in range(rounds):
                say(f"peers: round {number + 1} of {rounds}")
                await one_round(targets, found, seconds, folder)
            names = [target.name for target in targets]
    return absolute(found, names) + ratios(found, names)


def absolute(found: Found, names: list[str]) -> list[Figure]:
    """What each gateway did by itself; times are beyond those of a direct connection in the same round."""
    figures = []
    for name in names:
        figures += [
            figure(f"{name}: requests/s", found.of("rps", name), "1/s"),
            figure(f"{name}: CPU per 1,000 requests", found.of("cpu", name), "s"),
        ]
        if name != "direct" and found.of("p99", name):
            for quantity, title in (
                ("p50", "added p50 at 200/s"),
                ("p99", "added p99 at 200/s"),
                ("ttft p50", "added time to first, p50"),
                ("ttft p99", "added time to first, p99"),
            ):
                figures.append(figure(f"{name}: {title}", added(found, quantity, name), "ms"))
    return figures


def added(found: Found, quantity: str, name: str) -> list[float]:
    """A time beyond the direct connection's, by round."""
    return [mine - base for mine, base in zip(found.of(quantity, name), found.of(quantity, "direct"), strict=True)]


def beyond(found: Found, quantity: str, name: str) -> float:
    """The median of a time over rounds beyond the direct connection's median."""
    return statistics.median(found.of(quantity, name)) - statistics.median(found.of(quantity, "direct"))


def ratios(found: Found, names: list[str]) -> list[Figure]:
    """Ours over each peer's; the targets are for router and bus (``echo``).

    Requests/s are compared round by round. Added times are compared by their medians over rounds: in a single round
    the tails of two gateways, or of one and the direct connection, may have met different moments of the machine.
    """
    goals = {"vllm-router": (0.5, 1.0), "smg": (0.9, 1.5), "litellm": (50.0, 100.0)}

    def by_round(mine: list[float], theirs: list[float]) -> list[float]:
        return [a / b for a, b in zip(mine, theirs, strict=True) if b > 0]

    figures = []
    for ours in OURS:
        goal: Callable[[float], float | None] = (lambda v: v) if ours == "echo" else (lambda _v: None)
        for peer in (name for name in names if name in goals):
            must, aim = goals[peer]
            values = by_round(found.of("rps", ours), found.of("rps", peer))
            figures.append(
                figure(f"{ours}: requests/s against {peer}", values, must=goal(must), aim=goal(aim), higher=True)
            )
        if "vllm-router" in names:
            for quantity, title, must, aim in (
                ("p99", "added p99 at 200/s", 2.0, 1.2), ("ttft p99", "added time to first p99, 64 streams", 1.5, 1.0),
            ):  # fmt: skip
                mine, theirs = (beyond(found, quantity, name) for name in (ours, "vllm-router"))
                values = [mine / theirs] if theirs > 0 else []
                figures.append(figure(f"{ours}: {title} against vllm-router", values, must=goal(must), aim=goal(aim)))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--install", action="store_true", help="install the peers into .venv-peers, and no more")
    parser.add_argument("--engine", type=int, metavar="PORT", help="only serve the engine")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    if options.install:
        install()
    elif options.engine:
        uvloop.run(serve_engine(options.engine))
    else:
        print(table(uvloop.run(measure(rounds=options.rounds, seconds=options.seconds))))


if __name__ == "__main__":
    main()
