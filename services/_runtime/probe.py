"""`python -m services._runtime.probe`: is the service of this container alive? Exit status 0 or 1, and why on stderr.

What a container's health check runs, every few seconds: so it imports nothing beyond the standard library. It asks
`/health`; with the argument `ready`, `/ready`.
"""

import http.client
import json
import os
import ssl
import sys
from pathlib import Path

TIMEOUT_S = 3.0
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where it listens, not where we do


def processes(data_dir: Path) -> list[dict[str, object]]:
    """What live processes wrote to the data dir about where they listen."""
    found = []
    for file in sorted((data_dir / "run").glob("*.json")):
        try:
            told = dict(json.loads(file.read_text()))
        except (OSError, ValueError):
            continue
        if Path(f"/proc/{told.get('pid')}").exists():
            found.append(told)
    return found


def problem(told: dict[str, object], path: str) -> str | None:
    """Why the process is not as it should be, or None."""
    host, port = str(told["host"]), int(str(told["port"]))
    host, certificate = _ANYWHERE.get(host, host), told.get("certificate")
    connection: http.client.HTTPConnection
    try:
        if certificate:
            connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=_pinned(str(certificate)))
        else:
            connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as exc:
        return f"{told['service']} does not answer at {host}:{port} ({exc or type(exc).__name__})"
    return None if answer.status == 200 else f"{told['service']} answers {answer.status}: {body[:500]}"


def _pinned(certificate: str) -> ssl.SSLContext:
    """Trusts the server's own certificate, whatever it is made out to (as `tls.pinned_context`)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cafile=certificate)
    return context


def main(arguments: list[str]) -> int:
    """Look at every process of the data dir; the exit status."""
    folder = os.environ.get("CYPRIA_DATA_DIR")
    if not folder:
        sys.stderr.write("probe: CYPRIA_DATA_DIR is not set: give the service's data dir\n")
        return 1
    alive = processes(Path(folder))
    problems = [why for told in alive if (why := problem(told, "/ready" if arguments == ["ready"] else "/health"))]
    if not alive:
        problems = [f"no service has said in {folder}/run where it listens"]
    sys.stderr.write("".join(f"probe: {why}\n" for why in problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
