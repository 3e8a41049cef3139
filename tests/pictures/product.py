"""Takes the live page and the terminal: `python -m tests.pictures.product` writes docs/images/dashboard-*.png and *.svg.

A system of its own runs meanwhile, with a canary that is well, one that gets slow, and one that fails some requests.
"""

import asyncio
import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, expect
from rich.console import Console
from rich.text import Text

from tests.browser.chromium import browser, tab
from tests.browser.test_dashboard import looking, started, traffic
from tests.e2e.product import KEYS, Product, running_product
from tests.fakes.openai_server import Behaviour
from tests.harness import environment, eventually
from tests.pictures.grafana import IMAGES
from tests.system import ROOT
from tests.terminal import Terminal

WELL = Behaviour(latency_s=0.15, latency_sigma=0.3, chunk_delay_s=0.002)
SOME_FAIL = Behaviour(latency_s=0.15, latency_sigma=0.3, error_rate=0.12)
SLOW = Behaviour(latency_s=0.25, latency_sigma=0.3)
SLOWER = Behaviour(latency_s=0.2, latency_sigma=0.3)
VIEW: dict[str, Any] = {"viewport": {"width": 1180, "height": 1000}}
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 780}}


def as_svg(shown: str, columns: int, title: str) -> str:
    """What stands on a terminal, with its colours; in the reader's own fonts, not in those of a server somewhere."""
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(shown.rstrip()))
    found = re.sub(r"(?s)@font-face \{.*?\}|<!--.*?-->", "", console.export_svg(title=title))
    return found.replace("Fira Code, monospace", "ui-monospace, 'DejaVu Sans Mono', monospace")


def said(product: Product, *words: str, columns: int = 110) -> str:
    """A command and what it says."""
    variables = {"CYPRIA_URL": product.system.url, "CYPRIA_API_KEY": KEYS["admin"], "COLUMNS": str(columns), "FORCE_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", *words], env=environment(PYTHONPATH=str(ROOT), **variables), cwd=ROOT,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return f"\x1b[1m$ cypria {' '.join(words)}\x1b[0m\n{done.stdout}\n"


async def finished(product: Product, test_id: str, requests: int) -> None:
    """Wait until the canary has finished so many."""

    async def enough() -> bool:
        figures = (await product.figures(test_id)).get("variant_b") or {}
        return int(figures.get("request_count") or 0) >= requests

    await eventually(enough, 300, 0.5)


async def page(product: Product, chromium: Browser, folder: Path) -> None:
    """A test that is well, its guardrails and a phone; then one that is rolled back."""
    with product.behaving(stable=WELL, canary=WELL):
        async with started(product, auto_rollback=True) as test_id, traffic(product, 25):
            await finished(product, test_id, 600)
            async with looking(chromium, product, **VIEW) as seen:
                await expect(seen.page.locator(".charts canvas").first).to_be_attached()
                await seen.page.screenshot(path=folder / "dashboard-running.png")
                part = seen.page.locator("section", has=seen.page.locator(".guardrails")).last
                await part.screenshot(path=folder / "dashboard-guardrails.png")
            async with looking(chromium, product, "viewer", **PHONE) as small:
                await expect(small.page.locator(".guardrails tbody tr").first).to_be_attached()
                await small.page.screenshot(path=folder / "dashboard-phone.png")
    with product.behaving(stable=WELL, canary=SLOW):
        async with started(product, auto_rollback=True) as test_id, traffic(product, 25), tab(chromium, product.system.url, color_scheme="dark", **VIEW) as seen:
            await seen.sign_in(KEYS["operator"])
            await expect(seen.heading("canary was rolled back: stable serves everything again.")).to_be_visible(timeout=300_000)
            await seen.page.goto(f"{seen.url}/dashboard#/tests/{test_id}")
            await expect(seen.page.locator(".guardrails tbody tr").first).to_be_attached()
            await seen.page.screenshot(path=folder / "dashboard-rolled-back.png")


async def terminal(product: Product, folder: Path) -> None:
    """`cypria status` twice while a canary fails some requests, `cypria history` after its rollback, `cypria watch`."""
    with product.behaving(stable=WELL, canary=SOME_FAIL):
        async with started(product, auto_rollback=True, traffic_split_percent=20) as test_id, traffic(product, 25):
            await finished(product, test_id, 10)
            shown = await asyncio.to_thread(said, product, "status")
            await finished(product, test_id, 25)
            shown += await asyncio.to_thread(said, product, "status")

            async def over() -> bool:
                return bool((await product.system.status(test_id))["status"] == "rolled_back")

            await eventually(over, 300, 0.2)
    shown += await asyncio.to_thread(said, product, "history", "--limit", "1")
    (folder / "terminal.svg").write_text(as_svg(shown, 110, "cypria"))
    with product.behaving(stable=WELL, canary=WELL):
        async with started(product, auto_rollback=True) as test_id, traffic(product, 25):
            with Terminal(product, "watch", rows=24, columns=80) as watched:
                await finished(product, test_id, 120)
                product.canary.behaviour = SLOWER
                await eventually(lambda: "Careful: " in watched.text, 300)
                frame = watched.raw.split("\x1b[H")[1:-1][-1].replace("\r", "")
    (folder / "watch.svg").write_text(as_svg(frame, 80, "cypria watch"))


async def draw(folder: Path) -> None:
    """All of them into ``folder``."""
    with tempfile.TemporaryDirectory() as data:
        async with running_product(Path(data)) as product, browser() as chromium:
            await page(product, chromium, folder)
            await terminal(product, folder)


if __name__ == "__main__":
    asyncio.run(draw(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES))
