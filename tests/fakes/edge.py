"""An edge that answers what it is told to, and remembers what it was asked."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def refusal(message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "param": param, "code": code}}


class Edge:
    """Gives its answers one after the other, the last one for ever: (status, body, headers), or bytes as they are."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.seen: list[tuple[str, str, Any]] = []
        self.headers: list[dict[str, str]] = []
        edge = self

        class Handler(BaseHTTPRequestHandler):
            def _any(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                edge.seen.append((self.command, self.path, json.loads(self.rfile.read(length)) if length else None))
                edge.headers.append(dict(self.headers))
                answer = edge.answers.pop(0) if len(edge.answers) > 1 else edge.answers[0]
                if isinstance(answer, bytes):
                    self.wfile.write(answer)
                    self.close_connection = True
                    return
                status, body, headers = answer
                content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PATCH = do_DELETE = _any  # noqa: N815 - what the library looks for

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, *answers: Any) -> None:
        self.answers = [one if isinstance(one, bytes) else (*one, {}) if len(one) == 2 else one for one in answers]
        self.seen.clear()
