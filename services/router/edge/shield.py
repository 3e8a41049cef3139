"""What every answer tells a browser that shows it: run nothing, load nothing, be framed by nobody, tell nobody.

Answers of models go to programs that send a key, and are left as they are.
"""

from collections.abc import MutableMapping
from typing import Any

from services._runtime.health import SHIELD, Receive, Scope, Send

_NAMED = tuple((name.lower().encode(), value.encode()) for name, value in SHIELD.items())
_BODIED = frozenset({b"content-length", b"transfer-encoding"})


class Shielded:
    """``send`` with these headers in every answer; a page that has some of its own keeps them.

    ``begun``: an answer is on its way. Who asks before it sends a body, and is answered without having been told to
    send it, may not know whether what it sends next is taken for that body: such an answer ends the connection.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope["headers"]
        self._receive = receive
        self._send = send
        self._unasked = any(name == b"expect" for name, _ in headers) and any(name in _BODIED for name, _ in headers)
        self.begun = False

    async def receive(self) -> MutableMapping[str, Any]:
        """ASGI's ``receive``."""
        self._unasked = False
        return await self._receive()

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        """One message of ASGI."""
        if message["type"] == "http.response.start":
            self.begun = True
            if self._unasked:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            own = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(header for header in _NAMED if header[0] not in own)]
        await self._send(message)
