"""`make demo`: the main job on real parts. A healthy canary is measured and left alone; a bad one is taken out.

Starts `cypria up` on embedded parts with the models of infra/models, sends real traffic through the edge, and
prints what happened. Exits 0 when both canaries met the fate they deserve.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
from rich.markdown import Markdown
from rich.panel import Panel
from rich.status import Status

from services._cli import show
from services._cli.api import ApiError, acall
from services._cli.load import Load, Tally, drive

console = show.wide(highlight=False)
RATE = 8.0
SPLIT = 20.0
HEALTHY_S = 14.0
BAD_LIMIT_S = 25.0
RECORD_LIMIT_S = 15.0
TELL_EVERY_S = 4.0


class Line:
    """What happens now: one line that changes on a terminal, a line now and then where the output goes elsewhere."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._told = time.monotonic()

    def update(self, text: str) -> None:
        """Say it."""
        if console.is_terminal:
            self._status.update(text)
        elif time.monotonic() - self._told >= TELL_EVERY_S:
            self._told = time.monotonic()
            console.print(text)


@contextlib.contextmanager
def progress() -> Iterator[Line]:
    """A line of progress for as long as the block runs."""
    with console.status("") as status:
        yield Line(status)


class Demo:
    """One run against an edge that is up."""

    def __init__(self, url: str, key: str, folder: Path) -> None:
        self.url = url
        self.key = key
        self.folder = folder
        self.measured = ""
        self.rolled_back = ""

    async def call(
        self, method: str, path: str, body: dict[str, Any] | None = None, accept: str = "application/json"
    ) -> Any:
        """The control API."""
        return await acall(method, f"/v1/ab-testing/{path}", body=body, base=self.url, token=self.key, accept=accept)

    async def start(self, canary: str) -> str:
        """Start a test of a canary against ``stable``."""
        body = {"model_a": "stable", "model_b": canary, "traffic_split_percent": SPLIT, "test_duration_minutes": 60}
        return str((await self.call("POST", "start", body))["test_id"])

    def load(self, seed: int) -> Load:
        """Streaming chat requests of many users."""
        return Load(self.url, self.key, "stable", RATE, stream=True, max_tokens=64, users=400, seed=seed)

    async def healthy(self, seconds: float) -> bool:
        """A later checkpoint of the same model: measured for so long, and left alone."""
        console.rule("[bold]1. A healthy canary")
        self.measured = test_id = await self.start("canary")
        console.print(
            f"{test_id}: [green]stable[/green] against [cyan]canary[/cyan], {SPLIT:.0f} % of {RATE:.0f} requests/s"
        )
        tally = Tally()
        running = asyncio.create_task(drive(self.load(1), seconds=seconds, tally=tally))
        await self._follow(running, tally, test_id)
        state = await self.call("GET", f"status?test_id={test_id}")
        alive = state["status"] == "running"
        result = await self.call("POST", "stop", {"test_id": test_id, "reason": "enough seen"})
        show.result(result)
        counted = sum(v["request_count"] for v in result["metrics_summary"].values())
        console.print(
            f"clients were served {tally.finished} answers; the result counts {counted}; "
            f"users saw {tally.failed} failures"
        )
        return alive and counted == tally.finished and tally.failed == 0

    async def bad(self) -> bool:
        """The same checkpoint after a botched conversion: its generation fails, and it must be taken out."""
        console.rule("[bold]2. A canary that a botched conversion broke")
        self.rolled_back = test_id = await self.start("broken")
        console.print(
            f"{test_id}: [green]stable[/green] against [red]broken[/red], {SPLIT:.0f} % of {RATE:.0f} requests/s"
        )
        tally = Tally()
        state: dict[str, Any] = {}

        def out() -> bool:
            return state.get("status") not in {None, "running"}

        running = asyncio.create_task(drive(self.load(2), seconds=BAD_LIMIT_S, tally=tally, stop=out))
        with progress() as line:
            while not running.done():
                await asyncio.wait({running}, timeout=0.1)
                if not out():
                    state = await self.call("GET", f"status?test_id={test_id}")
                line.update(self._sent(tally))
        if not out():
            console.print(f"[red]the canary is still in after {BAD_LIMIT_S:.0f} s[/red]")
            return False
        result = await self.call("GET", f"tests/{test_id}")
        show.result(result)
        started, ended = (datetime.fromisoformat(result[name]) for name in ("start_time", "end_time"))
        console.print(
            f"[bold]out {(ended - started).total_seconds():.1f} s after the test began, "
            f"after {tally.by_variant['b']} of its own requests ({tally.finished} in all)[/bold]; "
            f"users saw {tally.failed} failures"
        )
        return bool(result["status"] == "rolled_back" and tally.failed == 0)

    async def record(self) -> bool:
        """What stays on record: the decision report, and the verdict derived anew from the stored evidence."""
        console.rule("[bold]3. The record")
        path = f"tests/{self.rolled_back}/report"
        deadline = time.monotonic() + RECORD_LIMIT_S
        while time.monotonic() < deadline:
            report = await self.call("GET", path)
            if report["evidence"] == "complete" and report["alerts"]:
                break
            await asyncio.sleep(0.3)
        console.print(Markdown(await self.call("GET", path, accept="text/markdown")))
        page = self.folder / f"{self.rolled_back}.html"
        page.write_text(await self.call("GET", path, accept="text/html"), encoding="utf-8")
        console.print(f"\nthe same with plots, as one file: {page}", soft_wrap=True)
        same = True
        for test_id in (self.measured, self.rolled_back):
            console.rule(f"the verdict on {test_id} again, from the stored evidence")
            replay = await self.call("GET", f"tests/{test_id}/replay")
            show.replay(replay)
            same = same and replay["same"] is not False
        return same and report["evidence"] == "complete"

    async def _follow(self, running: "asyncio.Task[Tally]", tally: Tally, test_id: str) -> None:
        with progress() as line:
            while not running.done():
                await asyncio.wait({running}, timeout=1.0)
                state = await self.call("GET", f"status?test_id={test_id}")
                line.update(f"{self._sent(tally)}  {(state.get('verdict') or {}).get('summary') or ''}")

    @staticmethod
    def _sent(tally: Tally) -> str:
        by = tally.by_variant
        return f"sent {tally.sent}, answered by A {by['a']}, by B {by['b']}, failed {tally.failed}"


def free_port(preferred: int) -> int:
    """The preferred port when nobody has it, else any free one."""
    for port in (preferred, 0):
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
            return int(sock.getsockname()[1])
    raise SystemExit("demo: no free port on 127.0.0.1")


@contextlib.asynccontextmanager
async def system(data_dir: Path, port: int, *, keep: bool) -> AsyncIterator[tuple[str, str]]:
    """`cypria up` as a process of its own; yields (url, admin key)."""
    log = data_dir / "cypria.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(  # noqa: ASYNC220, S603 - our own command, started once
            [sys.executable, "-m", "services.cli", "up", "--data-dir", str(data_dir), "--port", str(port)],
            stdout=sink, stderr=sink, start_new_session=keep,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        await _wait_ready(process, url, log)
        yield url, (data_dir / "admin.key").read_text().strip()
    finally:
        if keep and process.poll() is None:
            console.print(
                f"left running, with everything in {data_dir}. To use it from this shell:\n"
                f"  export CYPRIA_URL={url} CYPRIA_API_KEY=$(cat {data_dir / 'admin.key'})\n"
                f"  .venv/bin/cypria status\n"
                f"Its live page is at {url}/dashboard: sign in with that key, and start a test there. Users for it:\n"
                f"  .venv/bin/cypria load stable --rate 8 --seconds 600 --stream --users 400 --max-tokens 64\n"
                f"Its API is at {url}/docs.\n"
                f"Stop it with: kill {process.pid}",
                soft_wrap=True,
            )
        else:
            console.print("stopping")
            process.send_signal(signal.SIGTERM)
            process.wait(15)


async def _wait_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    began = time.monotonic()
    with progress() as line:
        async with aiohttp.ClientSession() as session:
            while True:
                if process.poll() is not None:
                    raise SystemExit(f"demo: cypria up ended with {process.returncode}; its log is {log}")
                missing: Any = "starting processes"
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    async with session.get(f"{url}/ready") as response:
                        if response.status == 200:
                            break
                        missing = (await response.json()).get("missing")
                line.update(f"{time.monotonic() - began:.0f} s: waiting for {missing}")
                if time.monotonic() - began > 90:
                    raise SystemExit(f"demo: not ready after 90 s, missing {missing}; log in {log}")
                await asyncio.sleep(0.2)
    console.print(f"five services, nats-server and ClickHouse are up after {time.monotonic() - began:.1f} s at {url}")
    console.print(f"the live page is at {url}/dashboard")


async def main(*, keep: bool, healthy_s: float) -> int:
    """Run the demo; the exit status."""
    began = time.monotonic()
    data_dir = Path(tempfile.mkdtemp(prefix="cypria-demo-"))
    async with system(data_dir, free_port(2242), keep=keep) as (url, key):
        demo = Demo(url, key, data_dir)
        try:
            fine = all([await demo.healthy(healthy_s), await demo.bad(), await demo.record()])
        except ApiError as exc:
            raise SystemExit(f"demo: the edge refused: {exc}; log in {data_dir / 'cypria.log'}") from None
        verdict = (
            "[green]both canaries met the fate they deserve[/green]"
            if fine
            else f"[red]not as it should be; log in {data_dir}/cypria.log[/red]"
        )
        console.print(Panel(f"{verdict}   {time.monotonic() - began:.0f} s", expand=False))
    return 0 if fine else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m infra.demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the system running")
    parser.add_argument(
        "--healthy-seconds", type=float, default=HEALTHY_S, help=f"how long the first one is measured ({HEALTHY_S:.0f})"
    )
    asked = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    raise SystemExit(asyncio.run(main(keep=asked.keep, healthy_s=asked.healthy_seconds)))
