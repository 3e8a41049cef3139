"""What metrics reads from the configuration."""

import json
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from services._runtime.nats_server import HOST, free_port, write_private
from services._runtime.settings_model import Settings
from services._runtime.settings_security import Anomalies
from services._runtime.settings_tls import ClientTls
from services.metrics.domain.anomalies import Limits

HTTP_USER = "cypria"
CREDENTIALS = "clickhouse-http.json"


@dataclass(frozen=True)
class HttpFront:
    """Where the read-only HTTP front listens, and its user's password."""

    host: str
    port: int
    user: str
    password: str


@dataclass(frozen=True)
class MetricsSettings:
    """``writer`` names this process in its windows; ``http_enabled`` only matters with chDB.

    ``check_every_s`` and ``check_all_every_s`` are about the audit's chain; 0 of the former: never.
    """

    dsn: str
    tls: ClientTls | None
    cluster: str | None
    retention_days: int
    min_group_size: int
    http_enabled: bool
    writer: str
    data_dir: Path
    anomalies: Limits
    check_every_s: float
    check_all_every_s: float


def read(settings: Settings) -> MetricsSettings:
    """The part of the settings that this service needs."""
    return MetricsSettings(
        dsn=settings.clickhouse_dsn(),
        tls=settings.clickhouse.tls,
        cluster=settings.clickhouse.cluster,
        retention_days=settings.privacy.retention_days,
        min_group_size=settings.privacy.min_group_size,
        http_enabled=settings.clickhouse.http_enabled,
        writer=f"m{secrets.token_hex(4)}",
        data_dir=settings.data_dir,
        anomalies=_limits(settings.security.anomalies),
        check_every_s=settings.security.audit_checks.every_seconds,
        check_all_every_s=settings.security.audit_checks.full_every_hours * 3600,
    )


def _limits(given: Anomalies) -> Limits:
    return Limits(
        window_ms=round(given.window_seconds * 1000), quiet_ms=round(given.quiet_minutes * 60_000),
        refused_by_source=given.refused_by_source, refused_in_all=given.refused_in_all,
        refused_admin_changes=given.refused_admin_changes, new_places=given.new_places,
        new_places_of_clients=given.new_places_of_clients,
    )  # fmt: skip


def http_front(settings: Settings) -> HttpFront:
    """The front's address and password: the configured ones, else those of the last start, else new ones.

    They are kept in the data dir (mode 0600), so that what was set up in Grafana goes on working.
    """
    path = settings.data_dir / CREDENTIALS
    known = _known(path)
    configured = settings.clickhouse.http_password
    password = configured.get_secret_value() if configured else str(known.get("password") or secrets.token_urlsafe(24))
    port = settings.clickhouse.http_port or _usable(known.get("port"))
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    shown = {
        "url": f"http://{HOST}:{port}",
        "port": port,
        "user": HTTP_USER,
        "password": password,
        "database": "cypria",
    }
    write_private(path, json.dumps(shown, indent=1))
    return HttpFront(HOST, port, HTTP_USER, password)


def _known(path: Path) -> dict[str, object]:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _usable(port: object) -> int:
    """The port if nobody listens on it, else a free one."""
    if isinstance(port, int) and 0 < port < 65_536:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                return free_port()
        return port
    return free_port()
