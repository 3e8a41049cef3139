"""Passwords and keys for a system in containers, made once: `python -m infra.make_secrets FOLDER | --kubernetes NAME`.

With FOLDER it writes a file for each, for compose.yaml; what is there already stays as it is. With `--kubernetes` it
prints a Secret of that name for `kubectl apply -f -`. What each is for is in docs/containers.md and docs/cluster.md.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

from infra.nats.users import USERS, variable

DATABASE = "cypria"
KEYS = ("admin-key", "app-key", "signing-key", "unit-salt")
"""Values of CYPRIA_ADMIN_KEY and so on: API keys of both roles, what signs feedback tokens, what salts units."""
_OTHERS = ("nats-routes", "clickhouse-interserver-secret", "grafana-admin-password")
"""Among them what nats-servers of a cluster show one another."""
CLICKHOUSE_USERS = ("clickhouse-password", "grafana-clickhouse-password")


def complete(known: dict[str, str], clickhouse: str = "clickhouse:8123") -> dict[str, str]:
    """All of them: those that are known, new ones, and what follows from both. ``clickhouse``: its address.

    Raises ValueError for a password that cannot stand in an address or a configuration.
    """
    names = [*(f"nats-{user}" for user in USERS), *CLICKHOUSE_USERS, *_OTHERS]
    found = {name: known.get(name) or secrets.token_urlsafe(24) for name in names}
    found |= {name: known.get(name) or "cyp_" + secrets.token_urlsafe(32) for name in KEYS}
    for name, text in found.items():
        if not set(text) <= _PLAIN:
            raise ValueError(f"{name}: only letters, digits, - and _ may be in it: take another one")
    passwords = [f'{variable(user)[1:]}: "{found[f"nats-{user}"]}"\n' for user in USERS]
    return {
        **found,
        "nats-passwords.conf": "".join(passwords),
        "clickhouse-dsn": f"clickhouse://{DATABASE}:{found['clickhouse-password']}@{clickhouse}/{DATABASE}",
        "clickhouse-users.xml": users_xml(*(found[name] for name in CLICKHOUSE_USERS)),
    }


_PLAIN = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def users_xml(password: str, of_grafana: str) -> str:
    """ClickHouse's users: one for the service metrics, one that may only read, and no `default`."""

    def hashed(text: str) -> str:
        return escape(hashlib.sha256(text.encode()).hexdigest())

    return f"""<clickhouse>
  <profiles>
    <reading>
      <readonly>2</readonly>
      <max_execution_time>30</max_execution_time>
      <max_memory_usage>2000000000</max_memory_usage>
    </reading>
  </profiles>
  <users>
    <default remove="remove"/>
    <cypria>
      <password_sha256_hex>{hashed(password)}</password_sha256_hex>
      <networks><ip>::/0</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
    </cypria>
    <grafana>
      <password_sha256_hex>{hashed(of_grafana)}</password_sha256_hex>
      <networks><ip>::/0</ip></networks>
      <profile>reading</profile>
      <quota>default</quota>
      <grants><query>GRANT SELECT ON {DATABASE}.*</query></grants>
    </grafana>
  </users>
</clickhouse>
"""


def write(folder: Path) -> list[str]:
    """Write what is missing of the files, readable by the users of the containers; the names of those written.

    The folder itself is for its owner alone: nobody else of this machine gets to the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    known = {path.name: path.read_text().strip() for path in folder.iterdir() if path.is_file()}
    written = []
    for name, text in complete(known).items():
        path = folder / name
        if not path.exists() or path.read_text().strip() != text.strip():
            path.unlink(missing_ok=True)
            path.write_text(text)
            path.chmod(0o444)
            written.append(name)
    return written


def manifest(name: str) -> str:
    """A Secret of Kubernetes, as JSON, which is YAML too."""
    # ClickHouse's users are the only thing that the chart's own server needs as a whole; nats-server gets variables.
    data = complete({}, clickhouse=f"{name}-clickhouse:8123")
    del data["nats-passwords.conf"]
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "Opaque", "stringData": data}
    return json.dumps(body, indent=1)


def main(arguments: list[str]) -> int:
    """Make them; the exit status."""
    commands: dict[int, Callable[[], None]] = {
        1: lambda: print(f"written to {arguments[0]}: {', '.join(write(Path(arguments[0]))) or 'nothing new'}"),
        2: lambda: print(manifest(arguments[1])),
    }
    proper = len(arguments) == 1 and not arguments[0].startswith("-")
    if not proper and not (len(arguments) == 2 and arguments[0] == "--kubernetes"):
        print("usage: python -m infra.make_secrets FOLDER | --kubernetes NAME", file=sys.stderr)
        return 2
    try:
        commands[len(arguments)]()
    except (OSError, ValueError) as exc:
        print(f"make_secrets: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
