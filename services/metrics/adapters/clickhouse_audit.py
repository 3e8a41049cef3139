"""`audit_chain`: the links of the chain of audit records, its head in each stream, and what anomalies are seen from."""

from collections.abc import Sequence
from typing import Any

from clickhouse_connect.driver.client import Client

from services.metrics.adapters.clickhouse import ClickHouse
from services.metrics.domain.anomalies import COUNTED, FURTHER_REFUSALS, Seen
from services.metrics.domain.chain import RECORD, START, Head, Link, Record, stream_of, values

TABLE = "audit_chain"

COLUMNS = (
    "stream_created", "sequence", "position", "stored_at", "previous_at", "previous", "hash",
    *("at" if name == "at_ms" else name for name in RECORD),
)  # fmt: skip
_NOTHING = tuple(0 if name in {"at_ms", "status", "changes"} else "" for name in RECORD)
_SELECT = ", ".join(
    f"toUnixTimestamp64Milli({name})" if name in {"at", "stored_at", "previous_at"} else name for name in COLUMNS
)


class AuditStore:
    """The table. Every method takes a client and runs on one of the engine's threads."""

    def __init__(self, engine: ClickHouse) -> None:
        self._engine = engine
        self._table = f"{engine.database}.{TABLE}"

    def heads(self, client: Client) -> dict[str, Head]:
        """The head in each stream that was ever taken in, by its creation time, oldest stream first."""
        self._engine.settle(client, TABLE)
        rows = client.query(
            "SELECT stream_created, max(position), argMax(hash, position), "  # noqa: S608
            f"toUnixTimestamp64Milli(argMax(stored_at, position)) FROM {self._table} WHERE sequence = 0 "
            "GROUP BY stream_created ORDER BY stream_created"
        ).result_rows
        return {str(created): Head(int(sequence), str(hashed), int(at)) for created, sequence, hashed, at in rows}

    def head(self, client: Client, created: str) -> tuple[str, Head]:
        """Where to go on in a stream, and what the stream is called there.

        That is its own head in its last life, or before its first record the end of the stream before it.
        """
        heads = self.heads(client)
        lives = [stream for stream in heads if stream_of(stream) == created]
        if lives:
            return lives[-1], heads[lives[-1]]
        last = next(reversed(heads.values()), START)
        return created, Head(0, last.hash, last.stored_ms)

    def begins(self, client: Client, stream: str) -> int:
        """The first sequence that the table has of a stream; 0 where it has none."""
        rows = client.query(
            f"SELECT min(sequence) FROM {self._table} WHERE stream_created = {{stream:String}} AND sequence > 0",  # noqa: S608
            parameters={"stream": stream},
        ).result_rows
        return int(rows[0][0])

    def add(self, client: Client, links: Sequence[Link]) -> None:
        """Put links of one stream into the table with the head that they lead to: one block, all of it or nothing."""
        rows = [_row(one) for one in links]
        rows.append(_head_row(links[-1]))
        self._engine.insert(client, TABLE, COLUMNS, rows, {})

    def count(self, client: Client) -> int:
        """How many records there are."""
        return int(client.query(f"SELECT count() FROM {self._table} WHERE sequence > 0").result_rows[0][0])  # noqa: S608

    def strays(self, client: Client) -> list[str]:
        """Streams that records are of and that have no head."""
        rows = client.query(
            f"SELECT stream_created FROM {self._table} GROUP BY stream_created "  # noqa: S608
            "HAVING countIf(sequence = 0) = 0 ORDER BY stream_created"
        ).result_rows
        return [str(created) for (created,) in rows]

    def page(self, client: Client, created: str, after: int, until: int, limit: int) -> list[Link]:
        """Links of a stream after one sequence and up to another, at most so many, in order."""
        rows = client.query(
            f"SELECT {_SELECT} FROM {self._table} FINAL "  # noqa: S608
            "WHERE stream_created = {created:String} AND sequence > {after:UInt64} AND sequence <= {until:UInt64} "
            "AND sequence > 0 ORDER BY sequence LIMIT {limit:UInt32}",
            parameters={"created": created, "after": after, "until": until, "limit": limit},
        ).result_rows
        return [_link(row) for row in rows]

    def hashes(self, client: Client, sequence: int) -> set[str]:
        """The hashes of the records with this sequence, one for each stream, and of heads that ended there."""
        rows = client.query(
            f"SELECT hash FROM {self._table} FINAL WHERE position = {{sequence:UInt64}}",  # noqa: S608
            parameters={"sequence": sequence},
        ).result_rows
        return {str(hashed) for (hashed,) in rows}

    def since(self, client: Client, stored_ms: int) -> list[Seen]:
        """What anomalies are seen from, of records stored since then (Unix ms), oldest first."""
        rows = client.query(
            "SELECT stream_created, sequence, toUnixTimestamp64Milli(stored_at) AS ms, actor, role, action, "  # noqa: S608
            "source, status, needs, changes, if(action = {further:String}, "
            f"JSONExtractUInt(after, {{counted:String}}), 1) FROM {self._table} FINAL "
            "WHERE sequence > 0 AND stored_at >= fromUnixTimestamp64Milli({since:Int64}) "
            "ORDER BY stored_at, stream_created, sequence",
            parameters={"since": stored_ms, "further": FURTHER_REFUSALS, "counted": COUNTED},
        ).result_rows
        return [Seen(*row) for row in rows]

    def places(self, client: Client) -> list[tuple[str, str, str, int]]:
        """(actor, role, source, first use in Unix ms) of every key and place that it was used from, oldest first."""
        rows = client.query(
            "SELECT actor, argMin(role, stored_at), source, toUnixTimestamp64Milli(min(stored_at)) AS first "  # noqa: S608
            f"FROM {self._table} WHERE sequence > 0 AND role NOT IN ('', 'none') GROUP BY actor, source ORDER BY first"
        ).result_rows
        return [(str(actor), str(role), str(source), int(first)) for actor, role, source, first in rows]


def _row(one: Link) -> list[Any]:
    """Times as Unix ms: columns of this scale take integers for what they are."""
    place = [one.stream, one.sequence, one.sequence, one.stored_ms, one.previous_ms, one.previous, one.hash]
    return [*place, *values(one.record)]


def _head_row(last: Link) -> list[Any]:
    return [last.stream, 0, last.sequence, last.stored_ms, 0, "", last.hash, *_NOTHING]


def _link(row: Sequence[Any]) -> Link:
    created, sequence, _position, stored_ms, previous_ms, previous, hashed, *record = row
    return Link(str(created), int(sequence), int(stored_ms), int(previous_ms), previous, Record(*record), hashed)
