"""The chain of audit records: what is changed, removed or moved shows at its place, and nothing else does."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.v1.alerts import AuditRecord
from schemas.v1.cloudevent import dump, envelope
from services.metrics.domain import chain
from services.metrics.domain.chain import GENESIS, START, Head, Link, Place, Problem, Record, Walk

OLD, NEW = "2025-01-01 00:00:00+00:00", "2025-06-01 00:00:00+00:00"

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
records = st.builds(
    Record, event_id=texts, at_ms=st.integers(0, 10**12), actor=texts, role=texts, action=texts, target=texts,
    test_id=texts, source=texts, status=st.integers(0, 65_535), outcome=texts, request_id=texts, before=texts, after=texts,
    needs=texts, changes=st.booleans(),
)  # fmt: skip
chains = st.lists(st.tuples(records, st.integers(0, 1000)), min_size=2, max_size=12)


def chained(items: list[tuple[Record, int]], head: Head = START, stream: str = OLD) -> list[Link]:
    """One second and a bit between two records."""
    links: list[Link] = []
    at = head.stored_ms
    for number, (record, more) in enumerate(items, head.sequence + 1):
        at += 1000 + more
        links.append(chain.link(head, stream, number, at, record))
        head = links[-1].head
    return links


def verdict(links: list[Link], head: Head, kept_ms: int = 0, *, stream: str = OLD, walk: Walk | None = None) -> Problem | None:
    walk = walk or Walk(None, kept_ms)
    return walk.steps(links) or walk.end(stream, head)


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value + "x"


@given(chains)
def test_what_was_not_touched_is_whole_and_a_restart_anywhere_makes_the_same_chain(items: list[tuple[Record, int]]) -> None:
    links = chained(items)
    assert links[0].previous == GENESIS
    assert verdict(links, links[-1].head) is None
    for cut in range(1, len(links)):
        assert links[:cut] + chained(items[cut:], links[cut - 1].head) == links
        # The walk too can be left and taken up.
        walk = Walk(None, 0)
        assert walk.steps(links[:cut]) is None
        assert verdict(links[cut:], links[-1].head, walk=Walk(Place.parse(str(walk.place)), 0)) is None


@given(chains, st.data())
def test_one_changed_field_shows_at_its_record(items: list[tuple[Record, int]], data: st.DataObject) -> None:
    links = chained(items)
    index = data.draw(st.integers(0, len(links) - 1))
    name = data.draw(st.sampled_from([*Record.__slots__, "stored_ms", "previous_ms", "previous", "hash"]))
    one = links[index]
    inside = name in Record.__slots__
    changed = (
        replace(one, record=replace(one.record, **{name: other(getattr(one.record, name))}))
        if inside
        else replace(one, **{name: other(getattr(one, name))})
    )
    problem = verdict([*links[:index], changed, *links[index + 1 :]], links[-1].head)
    assert problem is not None
    assert (problem.kind, problem.first) == ("changed", one.sequence)


@given(chains, st.data())
def test_what_is_taken_out_shows_with_its_place(items: list[tuple[Record, int]], data: st.DataObject) -> None:
    links = chained(items)
    first = data.draw(st.integers(0, len(links) - 1))
    last = data.draw(st.integers(first, len(links) - 1))
    problem = verdict([*links[:first], *links[last + 1 :]], links[-1].head)
    assert problem is not None
    kind = "tail_missing" if last == len(links) - 1 else "front_missing" if first == 0 else "removed"
    assert (problem.kind, problem.first, problem.last) == (kind, first + 1, last + 1)


@given(chains, st.data())
def test_a_record_put_in_or_made_anew_with_its_hash_shows(items: list[tuple[Record, int]], data: st.DataObject) -> None:
    links = chained(items)
    index = data.draw(st.integers(0, len(links) - 2))
    one = links[index]
    before = links[index - 1].head if index else START
    forged = chain.link(before, OLD, one.sequence, one.stored_ms, replace(one.record, actor=one.record.actor + "x"))
    problem = verdict([*links[:index], forged, *links[index + 1 :]], links[-1].head)
    assert problem is not None
    assert (problem.kind, problem.first, problem.last) == ("changed", one.sequence, one.sequence + 1)


@given(chains, st.data())
def test_only_what_may_have_expired_may_be_gone(items: list[tuple[Record, int]], data: st.DataObject) -> None:
    links = chained(items)
    cut = data.draw(st.integers(1, len(links)))
    kept_ms = data.draw(st.integers(0, links[-1].stored_ms + 1))
    problem = verdict(links[cut:], links[-1].head, kept_ms)
    assert (problem is None) == (links[cut - 1].stored_ms <= kept_ms)


@given(chains, chains)
def test_the_chain_goes_on_over_a_stream_that_was_made_anew(
    older: list[tuple[Record, int]], newer: list[tuple[Record, int]]
) -> None:
    first = chained(older)
    head = first[-1].head
    second = chained(newer, Head(0, head.hash, head.stored_ms), NEW)
    walk = Walk(None, 0)
    assert verdict(first, head, walk=walk) is None
    assert verdict(second, second[-1].head, stream=NEW, walk=walk) is None
    # Without the older stream the newer one begins in the air.
    problem = verdict(second, second[-1].head, stream=NEW)
    assert problem is not None
    assert problem.kind == "front_missing"


@given(chains, chains, st.integers(0, 12))
def test_the_chain_goes_on_where_the_stream_lost_its_end(
    older: list[tuple[Record, int]], newer: list[tuple[Record, int]], kept: int
) -> None:
    first = chained(older)
    head, life = first[-1].head, chain.next_life(OLD)
    second = chained(newer, Head(min(kept, len(first)), head.hash, head.stored_ms), life)
    walk = Walk(None, 0)
    assert verdict(first, head, walk=walk) is None
    assert verdict(second, second[-1].head, stream=life, walk=walk) is None
    walk = Walk(None, 0)
    problem = verdict(first[:-1], head, walk=walk) or verdict(second, second[-1].head, stream=life, walk=walk)
    assert problem is not None
    assert problem.kind == "tail_missing"
    walk = Walk(None, 0)
    assert verdict(first, head, walk=walk) is None
    problem = verdict(second[1:], second[-1].head, stream=life, walk=walk)
    assert problem is not None
    assert (problem.kind, problem.stream) == ("removed", life)


def test_lives_of_a_stream_have_names_in_their_order() -> None:
    names = [OLD]
    for _ in range(12):
        names.append(chain.next_life(names[-1]))
    assert names == sorted(set(names))
    assert {chain.stream_of(name) for name in names} == {OLD}
    assert names[-1] < NEW


def test_what_was_gone_before_it_could_be_chained_is_told_and_no_removal() -> None:
    first, second = chained([(record(), 0), (record(), 0)])
    late = chain.link(first.head, OLD, 5, second.stored_ms, record())
    problem = verdict([first, late], late.head)
    assert problem is not None
    assert (problem.kind, problem.first, problem.last) == ("never_taken_in", 2, 4)
    assert problem.message.startswith("records 2 to 4 were gone from AUDIT")
    alone = chain.link(first.head, OLD, 3, second.stored_ms, record())
    problem = verdict([first, alone], alone.head)
    assert problem is not None
    assert problem.message.startswith("record 2 was gone from AUDIT")
    begun_late = chain.link(START, OLD, 40, 1000, record())
    assert verdict([begun_late], begun_late.head) is None


def test_what_is_gone_from_the_stream_alone_is_told_by_place() -> None:
    places = chain.deleted(OLD, [1, 9, 10, 20])
    assert [(one.kind, one.first, one.last) for one in places] == [("deleted", 1, 1), ("deleted", 9, 10), ("deleted", 20, 20)]
    assert [one.message.split(" deleted")[0] for one in places[:2]] == ["record 1 was", "records 9 to 10 were"]


def record() -> Record:
    return chain.record_of(message())


def test_the_hash_of_a_record_is_the_same_for_ever() -> None:
    """What was written down must verify with every later version: a change of this is a change of every chain."""
    assert Record.__slots__ == chain.RECORD
    made = chain.link(START, OLD, 1, 1000, chain.record_of(message(before={"a": 1}, target="é", needs="admin", changes=True)))
    assert made.hash == "70a2f807acadda2500f758bc8476560b0545afa7d88aa23ff7a493018f728fb0"


def message(**fields: Any) -> bytes:
    known: dict[str, Any] = {
        "at_ms": 5, "actor": "ops", "role": "admin", "action": "stop", "source": "bus", "status": 200, "outcome": "ok",
        "request_id": "r1",
    }  # fmt: skip
    return dump(envelope("audit", "audit.1", "router", 5, AuditRecord(**{**known, **fields})))


def test_a_message_becomes_a_record_of_canonical_text() -> None:
    data = message(before={"b": [1, None], "a": "éMARK"}, after={}, status=70_000, at_ms=10**15)
    made = chain.record_of(data.replace(b"MARK", b"\\ud800"))
    assert made.before == '{"a":"\\u00e9\\ud800","b":[1,null]}'
    assert (made.after, made.status, made.at_ms) == ("{}", 65_535, 4_102_444_800_000)
    assert chain.record_of(message()).before == ""
    assert json.loads(made.before) == {"a": "é\ud800", "b": [1, None]}


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"id":""}', b'{"id":"x","data":{"actor":5}}', b"[" * 100_000])
def test_what_is_no_record_keeps_its_place_by_its_digest(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        chain.record_of(data)
    mark = chain.record_or_mark(data, 7)
    assert (mark.action, mark.event_id, mark.at_ms) == ("unreadable", "", 7)
    assert mark != chain.record_or_mark(data + b" ", 7)


def test_a_place_that_is_none_is_refused() -> None:
    for text in ("", "x", "1:2", "x:y:z"):
        with pytest.raises(ValueError, match=r"."):
            Place.parse(text)
