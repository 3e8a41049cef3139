"""Wrong keys, and who has to wait for them."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.domain import door
from services.router.domain.auth import KeyRing, Principal, Role, StoredKey
from services.router.domain.door import Door, Guesses, network
from services.router.domain.refusals import TooMany, Unauthenticated

HERE, THERE = "192.0.2.1", "192.0.2.2"


def ring() -> KeyRing:
    return KeyRing([
        StoredKey(Principal(name, Role.CLIENT), hashlib.sha256(name.encode()).digest()) for name in ("app", "other")
    ])  # fmt: skip


def wrong(guarded: Door, times: int, source: str = HERE, at: float = 0.0) -> None:
    for n in range(times):
        with pytest.raises(Unauthenticated):
            guarded.enter(f"Bearer wrong-{n}", source, at)


def test_after_twenty_wrong_keys_in_a_minute_only_known_ones_come_in_from_there() -> None:
    guarded = Door(ring(), failed_per_minute=20)
    assert guarded.enter("Bearer app", HERE, 0.0).name == "app"
    wrong(guarded, 20)
    assert guarded.enter("Bearer app", HERE, 1.0).name == "app"
    wrong(guarded, 1, at=1.0)
    for header in ("Bearer wrong", "Bearer other", None, "Basic eA==", "Bearer " + "x" * 9000):
        with pytest.raises(TooMany) as refused:
            guarded.enter(header, HERE, 2.0)
        assert (refused.value.retry_after_s, refused.value.code) == (58, "too_many_failed_keys")
        assert guarded.knows(header, HERE, 2.0) is None
    assert (guarded.waiting(2.0), guarded.waiting(60.0)) == (1, 0)
    assert guarded.enter("Bearer app", HERE, 2.0).name == "app", "it was good from here before"
    assert guarded.enter("Bearer other", THERE, 2.0).name == "other", "elsewhere nothing happened"
    with pytest.raises(TooMany):
        guarded.enter("Bearer other", HERE, 59.9)
    assert guarded.enter("Bearer other", HERE, 60.0).name == "other", "waiting as long as told is enough"


def test_it_is_told_once_each_time_that_a_source_begins_to_wait() -> None:
    told: list[str] = []
    guarded = Door(ring(), failed_per_minute=2)
    guarded.on_guessing(told.append)
    wrong(guarded, 2)
    assert told == []
    wrong(guarded, 1)
    for _ in range(5):
        with pytest.raises(TooMany):
            guarded.enter("Bearer wrong", HERE, 1.0)
    assert told == [HERE]
    wrong(guarded, 2, at=100.0)
    assert told == [HERE]
    wrong(guarded, 1, at=100.0)
    wrong(guarded, 3, source=THERE, at=100.0)
    assert told == [HERE, HERE, THERE]


def test_a_missing_key_is_no_guess_and_looking_leaves_no_trace() -> None:
    guarded = Door(ring(), failed_per_minute=2)
    for _ in range(50):
        with pytest.raises(Unauthenticated):
            guarded.enter(None, HERE, 0.0)
        assert guarded.knows("Bearer wrong", HERE, 0.0) is None
    assert guarded.knows("Bearer app", HERE, 0.0) == Principal("app", Role.CLIENT)
    wrong(guarded, 3)
    with pytest.raises(TooMany):
        guarded.enter("Bearer app", HERE, 0.0)


def test_a_key_that_ended_is_let_in_nowhere() -> None:
    keys = ring()
    guarded = Door(keys, failed_per_minute=2)
    for name in ("app", "other"):
        guarded.enter(f"Bearer {name}", HERE, 0.0)
    keys.take([StoredKey(Principal("other", Role.CLIENT), hashlib.sha256(b"other").digest())])
    with pytest.raises(Unauthenticated):
        guarded.enter("Bearer app", HERE, 0.0)
    wrong(guarded, 2)
    with pytest.raises(TooMany):
        guarded.enter("Bearer app", HERE, 0.0)
    assert guarded.enter("Bearer other", HERE, 0.0).name == "other"


def test_whoever_has_one_ipv6_address_has_its_network() -> None:
    assert network("2001:db8:1:2::1") == network("2001:db8:1:2:ffff::9") != network("2001:db8:1:3::1")
    assert network("::ffff:192.0.2.1") == network("192.0.2.1") != network("192.0.2.2")
    assert (network("bus"), network("unknown"), network("")) == ("bus", "unknown", "")


def test_zero_guards_nothing() -> None:
    guarded = Door(ring(), failed_per_minute=0)
    wrong(guarded, 500)
    assert guarded.enter("Bearer app", HERE, 0.0).name == "app"


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "MAX_SOURCES", 100)
    guesses = Guesses(20)
    for n in range(500):
        guesses.failed(f"10.0.{n // 250}.{n % 250}", n / 100)
    assert len(guesses) == 100
    guesses.failed(HERE, 100.0)
    assert len(guesses) == 1, "what is over is forgotten"
    guarded = Door(ring(), failed_per_minute=20)
    for n in range(1000):
        guarded.enter("Bearer app", f"10.0.{n // 250}.{n % 250}", 0.0)
    assert [len(places) for places in guarded._places.values()] == [door.MAX_PLACES]


@given(st.integers(1, 30), st.lists(st.floats(0, 20), min_size=1, max_size=150))
def test_never_more_wrong_keys_than_allowed_are_compared_in_any_minute(limit: int, gaps: list[float]) -> None:
    guarded = Door(ring(), failed_per_minute=limit)
    now, compared = 0.0, []
    for gap in gaps:
        now += gap
        try:
            guarded.enter("Bearer wrong", HERE, now)
        except Unauthenticated:
            compared.append(now)
        except TooMany:
            pass
    for at in compared:
        assert sum(at <= other < at + door.WINDOW_S for other in compared) <= limit + 1


def test_the_first_use_of_a_key_from_an_address_is_told_once() -> None:
    guarded, told = Door(ring(), 3), []

    def first(who: Principal, source: str) -> None:
        told.append((who.name, source))

    for key, source in (("app", HERE), ("app", HERE), ("app", THERE), ("other", HERE), ("app", THERE)):
        guarded.enter(f"Bearer {key}", source, 0.0, first)
    with pytest.raises(Unauthenticated):
        guarded.enter("Bearer wrong", HERE, 0.0, first)
    assert told == [("app", HERE), ("app", THERE), ("other", HERE)]
