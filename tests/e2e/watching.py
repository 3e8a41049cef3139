"""What `cypria watch` shows of a running system: on a terminal, and where there is none."""

import asyncio
import json
import sys

from tests.e2e.product import KEYS, Product, cypria
from tests.harness import environment, eventually
from tests.system import ROOT
from tests.terminal import Terminal


async def on_a_screen(product: Product) -> None:
    """80 columns, then 120, a router that is killed, and a rollback in the end."""
    async with product.test(traffic_split_percent=100, auto_rollback=True) as test_id:
        with Terminal(product, "watch", rows=24, columns=80) as screen:
            await eventually(lambda: "Too early to tell: canary has not finished" in screen.text)
            await product.chat()
            await eventually(lambda: "Safe so far: nothing speaks against canary" in screen.text)
            for words in (test_id, "split 100 %", "TTFT p95", "error_rate_increase", "a promotion still needs", "Test started"):
                assert words in screen.text, screen.text
            assert (len(screen.text.splitlines()), max(map(len, screen.text.splitlines())) <= 80) == (24, True)
            screen.resize(rows=40, columns=120)
            await eventually(lambda: "served by A" in screen.text)  # a column for which 80 leave no room
            killed = product.system.signal("router", 9)
            await eventually(lambda: "trying again" in screen.text)
            await eventually(lambda: "live" in screen.text.splitlines()[0])
            assert killed not in product.system.pids("router")
            await product.system.api("POST", "rollback", {"test_id": test_id, "reason": "seen enough"})
            assert await screen.left() == 0
        assert "seen enough" in screen.after
        assert f"cypria report {test_id}" in screen.after


async def of_several_tests(product: Product) -> None:
    """A line or two for each, without a colour where none is wanted, until a key is pressed."""
    async with product.test() as first, product.test("s2", "c2") as second:
        with Terminal(product, "watch", rows=24, columns=80, NO_COLOR="1") as screen:
            await eventually(lambda: {first, second} <= set(screen.text.split()))
            assert "\x1b[3" not in screen.raw
            screen.type("q")
            assert await screen.left() == 0
        assert first in screen.after


async def in_a_pipe(product: Product) -> None:
    """A line, or an object, for each change, until the test has ended."""
    known = {"CYPRIA_URL": product.system.url, "CYPRIA_API_KEY": KEYS["viewer"], "PYTHONPATH": str(ROOT)}
    async with product.test() as test_id:
        watching = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.cli", "watch", *options, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT, cwd=ROOT, env=environment(**known),
            )
            for options in ((test_id, "--json"), ())
        ]  # fmt: skip
        begun = [(await one.stdout.readline()).decode() for one in watching if one.stdout]
        await product.system.api("POST", "stop", {"test_id": test_id})
        objects, lines = [
            first + rest.decode() for first, (rest, _) in zip(begun, await asyncio.gather(*(one.communicate() for one in watching)), strict=True)
        ]
    assert [one.returncode for one in watching] == [0, 0], objects + lines
    told = [json.loads(line) for line in objects.splitlines()]
    assert (told[0]["kind"], told[-1]["kind"], told[-1]["decision"]) == ("status", "end", "inconclusive")
    assert any(one["kind"] == "event" and one["event"]["type"] == "cypria.test.completed.v1" for one in told)
    assert "\x1b" not in lines
    assert "completed, decision inconclusive" in lines.splitlines()[-1]
    status, _, said = await cypria(product, "watch", "ab_test_nothing")
    assert (status, "ab_test_nothing" in said) == (1, True)
