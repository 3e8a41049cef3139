"""Debian's Chromium, and pages that remember what went wrong in them."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, ConsoleMessage, Locator, Page, Request, async_playwright, expect

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
WAIT_MS = 60_000
"""A loaded machine is slow; what never comes is found all the same."""

expect.set_options(timeout=WAIT_MS)


@dataclass
class Tab:
    """A page, with the errors of its console and the origins that it asked."""

    page: Page
    url: str
    errors: list[str] = field(default_factory=list)
    origins: set[str] = field(default_factory=set)

    def watch(self) -> None:
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        # The browser's own line about a refusal or a server that is away: the page says it in words of its own.
        if message.type in {"error", "warning"} and "Failed to load resource" not in message.text:
            self.errors.append(message.text)

    def _request(self, request: Request) -> None:
        scheme, _, rest = request.url.partition("://")
        if scheme in {"http", "https", "ws", "wss"}:
            self.origins.add(f"{scheme}://{rest.split('/')[0]}")
            assert "SECRETMARK" not in request.url, "a key is in an address"

    async def sign_in(self, key: str, path: str = "", at: str = "/dashboard") -> None:
        await self.page.goto(f"{self.url}{at}{path}")
        await self.page.get_by_label("API key").fill(key)
        await self.page.keyboard.press("Enter")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def heading(self, text: str) -> Locator:
        return self.page.get_by_role("heading", name=text)

    async def violations(self, *rules: str) -> list[str]:
        """What axe-core finds, by all its rules or by these."""
        options = {"resultTypes": ["violations"]} | ({"runOnly": list(rules)} if rules else {})
        found = await Axe().run(self.page, options=options)
        return [f"{one['id']}: {[node['html'][:120] for node in one['nodes'][:3]]}" for one in found.response["violations"]]

    async def fits(self) -> bool:
        """Whether nothing has to be scrolled sideways."""
        return bool(await self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """A browser that ends with the block."""
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            yield started
        finally:
            await started.close()


@contextlib.asynccontextmanager
async def tab(started: Browser, url: str, **options: Any) -> AsyncIterator[Tab]:
    """A page with storage of its own; fails where its console had an error or it asked somebody else."""
    context = await started.new_context(**{"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce", **options})
    context.set_default_timeout(WAIT_MS)
    try:
        found = Tab(await context.new_page(), url)
        found.watch()
        yield found
        assert found.errors == []
        assert found.origins <= {url}, "it asked somebody else"
    finally:
        await context.close()
