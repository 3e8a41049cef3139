"""Receivers as they should not be, and as Slack documents itself to be."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from tests.service.alerts.receivers import Got

TEXTS = {"plain_text", "mrkdwn"}


def slack(_number: int, got: Got) -> tuple[int, Any, dict[str, str]]:
    """Slack's documented limits of a message and of its blocks: 200, or 400 with the word that Slack has for it."""
    body, wrong = got.body, []
    if not isinstance(body.get("text"), str) or not 0 < len(body["text"]) <= 40_000:
        wrong.append("no_text")
    blocks = body.get("blocks", [])
    if not 0 < len(blocks) <= 50:
        wrong.append("invalid_blocks")
    for block in blocks:
        kind = block.get("type")
        if kind == "header":
            fits = _text(block["text"], 150, {"plain_text"})
        elif kind == "section" and "fields" in block:
            fits = 0 < len(block["fields"]) <= 10 and all(_text(one, 2000, TEXTS) for one in block["fields"])
        elif kind == "section":
            fits = _text(block["text"], 3000, TEXTS)
        elif kind == "context":
            fits = 0 < len(block["elements"]) <= 10 and all(_text(one, 2000, TEXTS) for one in block["elements"])
        else:
            fits = False
        if not fits or set(block) - {"type", "text", "fields", "elements", "block_id"}:
            wrong.append("invalid_blocks_format")
    if set(body) - {"text", "blocks", "channel", "unfurl_links", "client_msg_id"}:
        wrong.append("invalid_payload")
    if got.headers.get("Content-Type", "").partition(";")[0] != "application/json":
        wrong.append("invalid_content_type")
    return (400, {"ok": False, "error": wrong[0]}, {}) if wrong else (200, {"ok": True}, {})


def _text(part: dict[str, Any], limit: int, kinds: set[str]) -> bool:
    known = {"type", "text", "emoji", "verbatim"} if part.get("type") == "plain_text" else {"type", "text", "verbatim"}
    return part.get("type") in kinds and 0 < len(part.get("text", "")) <= limit and not set(part) - known


@dataclass
class Broken:
    """Takes a connection, says these bytes, slowly if ``drip_s``, and hangs or closes; ``ended``: how many it closed."""

    says: bytes = b""
    drip_s: float = 0.0
    hangs: bool = False
    port: int = 0
    taken: int = 0
    ended: int = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Broken"]:
        server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._over = asyncio.Event()
        try:
            yield self
        finally:
            self._over.set()
            server.close()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.taken += 1
        with contextlib.suppress(OSError):
            for byte in self.says if self.drip_s else ():
                writer.write(bytes([byte]))
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._over.wait(), self.drip_s)
            if not self.drip_s:
                writer.write(self.says)
                await writer.drain()
            if self.hangs:
                await self._over.wait()
            self.ended += 1
            writer.close()
