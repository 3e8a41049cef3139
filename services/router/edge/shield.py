"""What every answer tells a browser that shows it: run nothing, load nothing, be framed by nobody, tell nobody.

Answers of models go to programs that send a key, and are left as they are.
"""

from collections.abc import MutableMapping
from typing import Any

from services._runtime.health import SHIELD, Send

_NAMED = tuple((name.lower().encode(), value.encode()) for name, value in SHIELD.items())


class Shielded:
    """``send`` with these headers in every answer; a page that has some of its own keeps them.

    ``begun``: an answer is on its way.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        """One message of ASGI."""
        if message["type"] == "http.response.start":
            self.begun = True
            own = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(header for header in _NAMED if header[0] not in own)]
        await self._send(message)
