"""Writes what compose.yaml and the chart give their nats-servers: `python -m infra.nats.render`.

With `--check` it writes nothing and exits 1 where a file is not what `users.py` says.
"""

import sys
from pathlib import Path

from infra.nats.users import LIMITS, authorization, variable
from services._runtime.generated import bring_up_to_date

ROOT = Path(__file__).resolve().parents[1]
HEAD = "# Made from infra/nats/users.py by `python -m infra.nats.render`: change it there."
MADE = (
    HEAD,
    "# Passwords are variables: of the server's environment, each with double quotes around it.",
)
_SERVER = (
    HEAD,
    "include ./passwords.conf",
    "listen: 0.0.0.0:4222",
    # for the container's own health check: it says much about clients, and wants no password
    "http: 127.0.0.1:8222",
    "server_name: cypria",
    *LIMITS,
    "jetstream {",
    "  store_dir: /data",
    # what the streams may take together: with less the server refuses to make them
    "  max_file_store: 40GB",
    "}",
)


def files() -> dict[Path, str]:
    """Path and content of each."""
    users = authorization(variable)
    return {
        ROOT / "helm" / "cypria" / "files" / "users.conf": "\n".join([*MADE, *users]) + "\n",
        ROOT / "nats" / "nats.conf": "\n".join([*_SERVER, *users]) + "\n",
    }


def main(arguments: list[str]) -> int:
    """Write or check; the exit status."""
    return bring_up_to_date(arguments, "python -m infra.nats.render", files())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
