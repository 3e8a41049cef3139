"""Bytes cut into events and pieces lose nothing and stay within their limits."""

import json

from hypothesis import given
from hypothesis import strategies as st

from services.inference.domain.outflow import Outflow
from services.inference.domain.sse import SseSplitter, data_of

events = st.lists(
    st.one_of(
        st.binary(max_size=20).map(lambda b: b"data: " + b.replace(b"\n", b"").replace(b"\r", b"") + b"\n\n"),
        st.just(b": keep-alive\n\n"),
        st.just(b"event: x\r\ndata: 1\r\n\r\n"),
    ),
    max_size=12,
)


@given(events, st.lists(st.integers(1, 30), min_size=1, max_size=40), st.binary(max_size=5))
def test_any_cut_gives_the_same_events(parts: list[bytes], cuts: list[int], tail: bytes) -> None:
    tail = tail.replace(b"\n", b"").replace(b"\r", b"")
    stream = b"".join(parts) + tail
    splitter, found, at, n = SseSplitter(), [], 0, 0
    while at < len(stream):
        size = cuts[n % len(cuts)]
        found += splitter.feed(stream[at : at + size])
        at, n = at + size, n + 1
    assert b"".join(found) + splitter.rest == stream
    assert found == parts
    assert splitter.rest == tail


def test_data_of_an_event() -> None:
    assert data_of(b"data: {}\n\n") == b"{}"
    assert data_of(b"data:{}\r\n\r\n") == b"{}"
    assert data_of(b"event: x\ndata: a\ndata: b\n\n") == b"a\nb"
    assert data_of(b": comment\n\n") == b""
    assert data_of(b"data: [DONE]\n\n") == b"[DONE]"


@given(
    st.lists(st.one_of(st.binary(min_size=1, max_size=25), st.integers(1, 4), st.none()), max_size=60),
    st.integers(0, 5),
)
def test_outflow_keeps_order_credit_and_size(steps: list[bytes | int | None], credit: int) -> None:
    flow = Outflow(credit, limit=10)
    given_in, out, granted, used = b"", b"", credit, 0
    for step in steps:
        if isinstance(step, bytes):
            flow.put(step)
            given_in += step
        elif isinstance(step, int):
            flow.grant(step)
            granted += step
        else:
            piece = flow.take()
            if piece is not None:
                used += 1
                assert 0 < len(piece) <= 10
                out += piece
            else:
                assert flow.credit == 0 or flow.buffered == 0
        assert flow.buffered == len(given_in) - len(out)
        assert flow.credit == granted - used
    while (rest := flow.last()) is None:
        flow.grant(1)
        out += flow.take() or b""
    assert len(rest) <= 10
    assert out + rest == given_in


def test_small_blocks_are_joined_and_whole() -> None:
    flow = Outflow(0, limit=10)
    for block in (b"aaaa", b"bbbb", b"cccc"):
        flow.put(block)
    flow.grant(9)
    assert [flow.take(), flow.take(), flow.take()] == [b"aaaabbbb", b"cccc", None]


def test_json_events_survive() -> None:
    text = "".join(f"data: {json.dumps({'n': n})}\n\n" for n in range(50)).encode()
    splitter = SseSplitter()
    assert [json.loads(data_of(event))["n"] for event in splitter.feed(text)] == list(range(50))
