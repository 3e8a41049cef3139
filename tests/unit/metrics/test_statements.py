"""What the read-only front lets through."""

import pytest

from services.metrics.adapters.clickhouse import AWAY, ClickHouse
from services.metrics.domain.statements import RefusedError, check

FUNCTIONS = frozenset(
    {"file", "url", "s3", "python", "remote", "numbers", "merge", "cluster", "executable", "mysql", "input", "values",
     "filecluster", "fuzzquery", "loop", "viewexplain", "format", "sqlite", "view", "dictionary"}
)  # fmt: skip

ALLOWED = [
    "SELECT 1", "select version(), timezone()", "SELECT name, value, readonly FROM system.settings LIMIT 10000",
    "SELECT * FROM variant_metrics_1m WHERE minute > now() - 3600 ORDER BY minute FORMAT JSON;",
    "WITH 1 AS x SELECT x -- a comment", "SHOW TABLES", "DESCRIBE TABLE cypria.window_cells", "DESC window_cells\n FORMAT Native",
    "EXISTS TABLE cypria.tests", "EXPLAIN SELECT 1", "(SELECT 1) UNION ALL (SELECT 2)", "SELECT number FROM numbers(10)",
    "SELECT /* note */ count() AS `requests / s` FROM t", "SELECT 'it''s -- no comment; nor /* this', 'a\\'b'",
    "SELECT {name:String}", "SELECT x.settings FROM system.tables AS x", "SELECT sum(x) FILTER(WHERE y) FROM t",
    "SELECT 'é\u2018\u2019' AS label",
]  # fmt: skip

REFUSED = [
    "", ";", "INSERT INTO t VALUES (1)", "CREATE TABLE t (a Int8) ENGINE = Memory", "DROP TABLE t", "ALTER TABLE t DELETE WHERE 1",
    "SYSTEM SHUTDOWN", "SET readonly = 0", "USE system", "KILL QUERY WHERE 1", "GRANT ALL ON *.* TO x", "ATTACH TABLE t",
    "TRUNCATE TABLE t", "OPTIMIZE TABLE t", "RENAME TABLE a TO b", "BACKUP TABLE t TO Disk('a','b')", "EXECUTE AS x SELECT 1",
    "SELECT 1; DROP TABLE t", "SELECT 1 INTO OUTFILE '/tmp/x'", "select 1 into/**/outfile '/tmp/x'", "SELECT 1 INTO\nOUTFILE 'x'",
    "SELECT 1 -- \n INTO OUTFILE 'x'", "EXPLAIN INSERT INTO t SELECT 1", "WITH 1 AS x INSERT INTO t SELECT x",
    "SELECT * FROM file('/etc/passwd')", "SELECT * FROM FILE ('/etc/passwd')", "SELECT * FROM file/**/('/etc/passwd')",
    "SELECT * FROM file -- x\n ('/etc/passwd')", "SELECT * FROM `file`('/etc/passwd')", 'SELECT * FROM "file"(\'/etc/passwd\')',
    "SELECT file('/etc/passwd')", "DESCRIBE file('/etc/passwd')", "DESCRIBE TABLE file('/etc/passwd')",
    "DESCRIBE '/etc/passwd'", "EXISTS TABLE `/etc/passwd`", "DESC (SELECT 1)", "DESCRIBE TABLE `a/b`",
    "SELECT * FROM url('http://127.0.0.1/', 'CSV')", "SELECT * FROM s3('http://x/y')", "SELECT * FROM Python(df)",
    "SELECT * FROM remote('127.0.0.1', 'a.b')", "SELECT * FROM executable('ls', 'TSV', 'a String')",
    "SELECT * FROM merge('cypria', '.*')", "SELECT * FROM mysql('a','b','c','d','e')", "SELECT * FROM loop(t)",
    "SELECT sleep(3)", "SELECT sleepEachRow(1) FROM numbers(100)", "SELECT aiGenerate('x')", "SELECT getServerSetting('x')",
    "SELECT `f\\x69le`('/etc/passwd')", "SELECT `a``file`(1)", "SELECT \u2018a\u2019", "SELECT 1 /* /* */ INTO OUTFILE 'x' */",
    "SELECT 'unclosed", "SELECT /* unclosed", "SELECT `unclosed", "SELECT $a$ x $a$", "SELECT 1 # comment\n INTO OUTFILE 'x'",
    "SELECT \x00 1", "SELECT 'a\\\\' , file('/etc/passwd'), '", "SELECT " + "1 " * 20_000, "SELECT 1\x0c", "\uff33\uff25\uff2c\uff25\uff23\uff34 1",
]  # fmt: skip


@pytest.mark.parametrize("statement", ALLOWED)
def test_a_question_is_let_through(statement: str) -> None:
    check(statement, FUNCTIONS)


@pytest.mark.parametrize("statement", REFUSED, ids=lambda s: s[:60])
def test_anything_else_is_refused(statement: str) -> None:
    with pytest.raises(RefusedError) as caught:
        check(statement, FUNCTIONS)
    assert str(caught.value)


async def test_who_asks_an_engine_that_is_closed_is_told_that_it_is_away() -> None:
    """As questions do that come while the service stops."""
    engine = ClickHouse("clickhouse://u:p@127.0.0.1:1/x")
    engine.close()
    for ask in (engine.read, engine.write):
        with pytest.raises(AWAY, match="metrics is stopping"):
            await ask(lambda client: client.ping())
