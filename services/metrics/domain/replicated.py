"""Statements of migrations for a cluster of ClickHouse servers: the same tables on all of them, replicated."""

import re

_TABLE = re.compile(r"^(CREATE TABLE IF NOT EXISTS) (\w+)\.(\w+)", re.IGNORECASE)
_VIEW = re.compile(r"^(CREATE OR REPLACE VIEW) (\S+)", re.IGNORECASE)
_INDEX = re.compile(r"^ALTER TABLE \S+ (?:ADD|MATERIALIZE) INDEX ", re.IGNORECASE)
_ENGINE = re.compile(r"\bENGINE = (\w*MergeTree)\b(?:\(([^)]*)\))?")
_TOKENS = "non_replicated_deduplication_window"


def on_cluster(statement: str, cluster: str) -> str:
    """A statement that makes a table or a view, for every server of the cluster; any other one as it is.

    Empty for an index that came later: a server that joins would make the table without it, and be refused for that.

    The path in Keeper is spelled out, so that a server that joins later gets the rows of the others. Raises ValueError
    for a table whose engine cannot be replicated.
    """
    if _INDEX.match(statement):
        return ""
    if view := _VIEW.match(statement):
        return f"{view[0]} ON CLUSTER '{cluster}'{statement[view.end() :]}"
    table = _TABLE.match(statement)
    if table is None:
        return statement
    engine = _ENGINE.search(statement)
    if engine is None:
        raise ValueError(f"table {table[3]} has no engine of the MergeTree family: it cannot be replicated")
    place = f"'/clickhouse/tables/{{shard}}/{table[2]}/{table[3]}', '{{replica}}'"
    arguments = f"{place}, {engine[2]}" if engine[2] else place
    begin, end = statement[table.end() : engine.start()], statement[engine.end() :]
    # Keeper remembers the tokens of inserts, whichever server took them.
    end = end.replace(_TOKENS, _TOKENS.removeprefix("non_"))
    return f"{table[0]} ON CLUSTER '{cluster}'{begin}ENGINE = Replicated{engine[1]}({arguments}){end}"
