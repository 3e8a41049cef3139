"""A process with a writable HTTP front over chDB: what stands in for a ClickHouse server."""

import asyncio
import sys

from clickhouse_connect import get_client

from services._runtime.server import die_with_parent
from services.metrics.adapters.clickhouse_http import Front


async def main(path: str, port: int) -> None:
    die_with_parent()
    client = get_client(dsn=f"chdb://{path}")
    client.command("CREATE DATABASE IF NOT EXISTS other")
    front = Front(path, "other", "cypria", "secret", writable=True)
    await front.start("127.0.0.1", port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
