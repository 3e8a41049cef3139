"""ClickHouse's part of `cypria provision`."""

import asyncio

from services._runtime.settings_tls import ClientTls
from services.metrics.adapters.clickhouse import AWAY, ClickHouse, DirectoryInUseError, MigrationError

FAILURES: tuple[type[Exception], ...] = (*AWAY, MigrationError)
"""What `provision_clickhouse` raises when ClickHouse does not answer, or has tables of another version."""


def provision_clickhouse(
    dsn: str,
    retention_days: int,
    min_group_size: int,
    secured: ClientTls | None = None,
    cluster: str | None = None,
) -> list[str]:
    """Create or migrate database, tables and views; returns what was done, in words. Idempotent.

    With chDB the process that holds the directory has done it already. Raises ConfigError, and one of FAILURES.
    """
    return asyncio.run(_provision(ClickHouse(dsn, secured, cluster), retention_days, min_group_size))


async def _provision(engine: ClickHouse, retention_days: int, min_group_size: int) -> list[str]:
    try:
        return await engine.write(lambda client: engine.migrate(client, retention_days, min_group_size))
    except DirectoryInUseError:
        return ["clickhouse: the running metrics service holds the chDB directory and keeps its tables up to date"]
    finally:
        await asyncio.to_thread(engine.close)
