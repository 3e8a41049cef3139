"""Work that a signal ends takes away what it made, in real processes; an answer that is under way is waited for."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from services._cli.ending import whole
from tests.harness import environment
from tests.system import ROOT

Working = subprocess.Popen[str]
WORK = """
import asyncio, sys
from services._cli.ending import EndedError, orderly

async def work():
    try:
        print("begun", flush=True)
        await asyncio.sleep(600)
    finally:
        print("tidying", flush=True)
        try:
            await asyncio.to_thread(sys.stdin.read)
            print("tidied", flush=True)
        finally:
            print("left", flush=True)

try:
    asyncio.run(orderly(work()))
except EndedError as exc:
    print(exc, flush=True)
    sys.exit(exc.status)
"""


@pytest.fixture
def start() -> Iterator[Callable[..., Working]]:
    started: list[Working] = []

    def begun(**options: Any) -> Working:
        working = subprocess.Popen([sys.executable, "-c", WORK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
                                   env=environment(PYTHONPATH=str(ROOT)), **options)  # fmt: skip
        started.append(working)
        assert line(working) == "begun"
        return working

    yield begun
    for one in started:
        one.kill()
        one.communicate()


def line(working: Working) -> str:
    assert working.stdout is not None
    return working.stdout.readline().strip()


def tidied(working: Working) -> list[str]:
    """What it says once it need not wait any longer."""
    said, _ = working.communicate()
    return said.splitlines()


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_work_in_order_and_more_of_them_change_nothing(start: Callable[..., Working], first: signal.Signals) -> None:
    working = start()
    working.send_signal(first)
    assert line(working) == "tidying"
    for again in (signal.SIGTERM, signal.SIGHUP):
        working.send_signal(again)
    assert tidied(working) == ["tidied", "left", f"ended by {first.name}"]
    assert working.returncode == 128 + first


def test_another_ctrl_c_skips_what_is_waited_for(start: Callable[..., Working]) -> None:
    working = start()
    working.send_signal(signal.SIGINT)
    assert line(working) == "tidying"
    working.send_signal(signal.SIGINT)
    assert line(working) == "left"
    assert tidied(working) == ["ended by SIGINT"]
    assert working.returncode == 130


def test_work_that_shall_outlive_its_terminal_does(start: Callable[..., Working]) -> None:
    working = start(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    working.send_signal(signal.SIGHUP)
    working.send_signal(signal.SIGTERM)
    assert tidied(working)[-1] == "ended by SIGTERM"
    assert working.returncode == 143


async def test_an_answer_under_way_is_waited_for_though_nobody_wants_it_any_more() -> None:
    asked, answered = asyncio.Event(), asyncio.Event()
    came: list[str] = []

    async def start() -> None:
        asked.set()
        await answered.wait()
        came.append("test_1")

    task = asyncio.create_task(whole(start()))
    await asked.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    answered.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert came == ["test_1"]
