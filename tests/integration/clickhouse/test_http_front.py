"""The HTTP front on the real engine: ClickHouse's own clients work, and nothing can be changed or reached through it."""

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import clickhouse_connect
import lz4.frame
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from services.metrics.adapters.clickhouse import ClickHouse
from services.metrics.adapters.clickhouse_http import Front

AUTH = {"Authorization": "Basic " + base64.b64encode(b"cypria:secret").decode()}


@dataclass
class Served:
    engine: ClickHouse
    port: int
    folder: Path

    def client(self, **options: Any) -> Any:
        return clickhouse_connect.get_client(
            host="127.0.0.1", port=self.port, username="cypria", password="secret", database="cypria", **options
        )


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    engine = ClickHouse(f"chdb://{tmp_path / 'chdb'}")
    await engine.open()
    await engine.write(lambda client: engine.migrate(client, 90, 5))
    front = Front(engine.path, "cypria", "cypria", "secret")
    try:
        yield Served(engine, await front.start("127.0.0.1", 0), tmp_path)
    finally:
        await front.stop()
        engine.close()


async def test_its_own_clients_work(served: Served) -> None:
    def use() -> None:
        client = served.client()
        assert client.query("SELECT count() FROM window_cells").result_rows == [(0,)]
        assert client.query("SELECT * FROM variant_metrics_1m").result_rows == []
        assert client.query("SELECT {a:String}, {b:Array(UInt8)}", parameters={"a": "x'y\\", "b": [1, 2]}).result_rows == [("x'y\\", [1, 2])]
        assert client.command("SELECT 7") == 7
        assert "variant_metrics_1m" in client.command("SHOW TABLES")
        assert client.raw_query("SELECT 1 AS x", fmt="JSONEachRow") == b'{"x":1}\n'
        assert client.query("DESCRIBE TABLE window_cells").row_count > 40
        assert client.query("SELECT toDateTime64(0, 3, 'UTC')").first_row[0].year == 1970
        assert client.ping()
        with client.query_row_block_stream("SELECT number FROM numbers(100000)") as stream:
            assert sum(len(block) for block in stream) == 100_000

    await asyncio.to_thread(use)
    client = await clickhouse_connect.get_async_client(host="127.0.0.1", port=served.port, username="cypria", password="secret")
    assert (await client.query("SELECT 42")).result_rows == [(42,)]
    await client.close()


async def test_views_have_their_stable_names(served: Served) -> None:
    for view in ("variant_metrics_1m", "variant_metrics_1h", "tests", "alerts", "audit_log"):
        rows = await served.engine.read(lambda client, view=view: client.query(f"SELECT * FROM cypria.{view}").result_rows)
        assert rows == []


ATTACKS = [
    "INSERT INTO cypria.migrations (number) VALUES (1)", "DROP TABLE cypria.window_cells", "CREATE TABLE cypria.x (a Int8) ENGINE = Memory",
    "ALTER TABLE cypria.window_cells DELETE WHERE 1", "SYSTEM SHUTDOWN", "SET readonly = 0", "SELECT 1 SETTINGS readonly = 0",
    "SELECT 1 SETTINGS max_execution_time = 0", "SELECT * FROM file('{secret}', 'LineAsString')", "SELECT file('{secret}')",
    "SELECT * FROM `{secret}`", "SELECT * FROM '{secret}'", "SELECT * FROM numbers(1), '{secret}'", "DESCRIBE file('{secret}')",
    "SELECT 1 INTO OUTFILE '{out}'", "SELECT * FROM url('http://127.0.0.1:1/', 'CSV', 'a String')", "SELECT 1; SELECT 2",
    "SELECT * FROM Python(secret)", "KILL QUERY WHERE 1", "SELECT sleep(1)", "SELECT * FROM executable('id', 'TSV', 'a String')",
    "SELECT throwIf(1)", "BACKUP TABLE cypria.window_cells TO File('{out}')", "SELECT * FROM merge('system', 'tables')",
    "SELECT count() FROM numbers(1000000000000) WHERE NOT ignore(number)", "SELECT * FROM numbers(1000000000)", "SELECT",
]  # fmt: skip


async def tables(served: Served) -> set[str]:
    names = "SELECT name FROM system.tables WHERE database = 'cypria'"
    return {row[0] for row in await served.engine.read(lambda client: client.query(names).result_rows)}


async def test_nothing_can_be_changed_or_reached(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("services.metrics.adapters.clickhouse_http", fromlist=["LIMITS"]).LIMITS, "max_execution_time", "1")
    before = await tables(served)
    secret, out = served.folder / "secret.txt", served.folder / "out.txt"
    secret.write_text("top secret")
    async with aiohttp.ClientSession(f"http://127.0.0.1:{served.port}", headers=AUTH) as session:
        for attack in ATTACKS:
            text = attack.format(secret=secret, out=out)
            for request in (session.post("/", data=text), session.get("/", params={"query": text})):
                async with request as response:
                    body = await response.text()
                    assert response.status >= 400, (text, body[:200])
                    assert response.headers["X-ClickHouse-Exception-Code"].isdigit()
                    assert "top secret" not in body
        for extra in ({"readonly": "0"}, {"allow_ddl": "1", "readonly": "2"}, {"max_execution_time": "0"}):
            async with session.post("/", data="DROP VIEW cypria.tests", params=extra) as response:
                assert response.status >= 400
        async with session.post("/", data="SELECT 1", params={"database": "x; DROP TABLE y"}) as response:
            assert response.status == 400
        async with session.post("/", data="SELECT 1", params={"a b": "c"}) as response:
            assert response.status == 400
        async with session.delete("/", data="SELECT 1") as response:
            assert response.status == 405
    assert not out.exists()
    assert await tables(served) == before


async def test_only_with_the_right_password(served: Served) -> None:
    url = f"http://127.0.0.1:{served.port}/"
    wrong = base64.b64encode(b"cypria:wrong").decode()
    refused: list[dict[str, str]] = [
        {}, {"Authorization": f"Basic {wrong}"}, {"Authorization": "Basic !"}, {"Authorization": "Bearer secret"},
        {"X-ClickHouse-User": "cypria"}, {"X-ClickHouse-User": "default", "X-ClickHouse-Key": "secret"},
    ]  # fmt: skip
    async with aiohttp.ClientSession() as session:
        for headers in refused:
            async with session.get(url, params={"query": "SELECT 1"}, headers=headers) as response:
                assert response.status == 403
                assert response.headers["X-ClickHouse-Exception-Code"] == "516"
        async with session.get(url, params={"query": "SELECT 1", "user": "cypria", "password": "secret"}) as response:
            assert response.status == 403
        good = {"X-ClickHouse-User": "cypria", "X-ClickHouse-Key": "secret"}
        async with session.get(url, params={"query": "SELECT 1"}, headers=good) as response:
            assert await response.text() == "1\n"
            assert response.headers["X-ClickHouse-Format"] == "TabSeparated"
        async with session.get(url + "ping") as response:
            assert await response.text() == "Ok.\n"
    with pytest.raises(DatabaseError, match="516"):
        await asyncio.to_thread(clickhouse_connect.get_client, host="127.0.0.1", port=served.port, username="cypria", password="no")


async def test_compressed_bodies_are_read_and_bombs_are_not(served: Served) -> None:
    bomb = lz4.frame.compress(b"SELECT 1 -- " + b"a" * (64 << 20))
    async with aiohttp.ClientSession(f"http://127.0.0.1:{served.port}", headers=AUTH) as session:
        headers = {"Content-Encoding": "lz4"}
        async with session.post("/", data=lz4.frame.compress(b"SELECT 5"), headers=headers) as response:
            assert await response.text() == "5\n"
        for data in (bomb, b"garbage", lz4.frame.compress(b"SELECT 5")[:-4]):
            async with session.post("/", data=data, headers=headers) as response:
                assert response.status in {400, 413, 500}
        async with session.post("/", data=b"SELECT 1", headers={"Content-Encoding": "rot13"}) as response:
            assert response.status == 400


async def test_one_request_leaves_nothing_for_the_next(served: Served) -> None:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{served.port}", headers=AUTH) as session:
        query = "SELECT currentDatabase(), {x:String}"
        async with session.post("/", data=query, params={"database": "system", "param_x": "1"}) as response:
            assert await response.text() == "system\t1\n"
        async with session.post("/", data="SELECT currentDatabase()") as response:
            assert await response.text() == "cypria\n"
        async with session.post("/", data=query) as response:
            assert response.status >= 400
    await served.engine.write(lambda client: client.command("CREATE TABLE cypria.still_writable (a Int8) ENGINE = Memory"))
