"""Streamed text is exactly the whole text, whatever the bytes and the stop strings."""

from collections.abc import Sequence as Items

from hypothesis import given
from hypothesis import strategies as st

from services.inference.domain.generation import Params
from services.inference.domain.sequence import Delta, Sequence
from services.inference.domain.text import Detokenizer, StopMatcher

EOS = 256


def decode(ids: Items[int]) -> str:
    return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


@given(st.binary(max_size=60))
def test_any_bytes_stream_to_the_same_text(data: bytes) -> None:
    detokenizer = Detokenizer(decode)
    pieces = [detokenizer.push(byte) for byte in data]
    assert "".join(pieces) + detokenizer.flush() == decode(data)


@given(st.text(max_size=40))
def test_no_half_characters_of_valid_text(text: str) -> None:
    detokenizer = Detokenizer(decode)
    so_far = ""
    for byte in text.encode():
        so_far += detokenizer.push(byte)
        assert text.startswith(so_far)
    assert so_far + detokenizer.flush() == text


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.integers(1, 4))
def test_stops_do_not_depend_on_how_the_text_comes(text: str, stops: list[str], size: int) -> None:
    found = [text.find(stop) for stop in stops if stop in text]
    matcher = StopMatcher(stops)
    out = ""
    for at in range(0, len(text), size):
        out += matcher.push(text[at : at + size])
        if matcher.stopped:
            break
    if not matcher.stopped:
        out += matcher.flush()
    if not found:
        assert (out, matcher.stopped) == (text, False)
    else:
        assert matcher.stopped
        assert not any(stop in out for stop in stops)
        assert text.startswith(out)


def run(text: str, **params: object) -> list[Delta]:
    values = Params(**params)  # type: ignore[arg-type]
    sequence = Sequence([1], values, values.max_tokens or 1000, [EOS], decode)
    deltas: list[Delta] = []
    for token in [*text.encode(), EOS]:
        delta = sequence.push(token)
        if delta is not None:
            deltas.append(delta)
            if delta.last:
                return deltas
    raise AssertionError("did not end")


def test_end_of_text() -> None:
    deltas = run("héllo")
    assert "".join(delta.text for delta in deltas) == "héllo"
    assert deltas[-1].finish == "stop"
    assert deltas[-1].tokens == 7


def test_length_gives_out_what_was_held_back() -> None:
    deltas = run("hello END", max_tokens=7, stop=("END",))
    assert "".join(delta.text for delta in deltas) == "hello E"
    assert deltas[-1].finish == "length"


def test_a_stop_string_in_the_last_token_is_a_stop() -> None:
    deltas = run("hello END", max_tokens=9, stop=("END",))
    assert "".join(delta.text for delta in deltas) == "hello "
    assert deltas[-1].finish == "stop"


def test_ignoring_the_end() -> None:
    sequence = Sequence([1], Params(ignore_eos=True), 2, [EOS], decode)
    assert sequence.push(EOS) is None
    assert sequence.push(ord("x")).finish == "length"  # type: ignore[union-attr]
