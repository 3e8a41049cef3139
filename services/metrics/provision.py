"""ClickHouse's part of `cypria provision`."""

import asyncio

from services.metrics.adapters.clickhouse import ClickHouse, DirectoryInUseError


def provision_clickhouse(dsn: str, retention_days: int) -> list[str]:
    """Create or migrate database, tables and views; returns what was done, in words. Idempotent.

    With chDB the process that holds the directory has done it already. Raises MigrationError, and one of
    `adapters.clickhouse.AWAY` when the server does not answer.
    """
    return asyncio.run(_provision(dsn, retention_days))


async def _provision(dsn: str, retention_days: int) -> list[str]:
    engine = ClickHouse(dsn)
    try:
        return await engine.write(lambda client: engine.migrate(client, retention_days))
    except DirectoryInUseError:
        return ["clickhouse: the running metrics service holds the chDB directory and keeps its tables up to date"]
    finally:
        await asyncio.to_thread(engine.close)
