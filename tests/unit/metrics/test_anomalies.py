"""What counts as unusual in the audit, from when to when, and that it is the same whoever works it out."""

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from schemas.v1.common import AlertLevel
from services.metrics.domain.anomalies import Limits, Seen, Watch

LIMITS = Limits(window_ms=1000, quiet_ms=5000, refused_by_source=3, refused_in_all=5, refused_admin_changes=2, new_places=True)
T0 = 1_000_000


def seen(sequence: int, at_ms: int, **fields: Any) -> Seen:
    known: dict[str, Any] = {
        "actor": "anonymous", "role": "none", "action": "status", "source": "aa", "status": 401, "needs": "viewer",
        "changes": False,
    }  # fmt: skip
    return Seen("s", sequence, at_ms, **{**known, **fields})


def incidents(watch: Watch, at_ms: int) -> dict[str, int]:
    return {one.incident: one.since_ms for one in watch.going_on(at_ms)}


def test_refusals_of_one_address_within_the_window_and_over_when_it_is_quiet() -> None:
    watch = Watch(LIMITS)
    for number, at in enumerate((0, 600, 1200), 1):
        watch.add(seen(number, T0 + at))
    assert incidents(watch, T0 + 1200) == {}
    watch.add(seen(4, T0 + 1500))
    name = "security.refused.source.aa"
    assert incidents(watch, T0 + 1500) == {name: T0 + 1500}
    watch.add(seen(5, T0 + 1600))
    assert incidents(watch, T0 + 6600) == {name: T0 + 1500}
    assert incidents(watch, T0 + 6601) == {}
    # One more is no burst, three are: another one, from then on.
    for number, at in enumerate((20_000, 20_100, 20_200), 6):
        assert incidents(watch, T0 + at) == {}
        watch.add(seen(number, T0 + at))
    assert incidents(watch, T0 + 20_200) == {name: T0 + 20_200}


def test_an_address_that_a_router_has_shut_out_is_enough_by_itself() -> None:
    watch = Watch(LIMITS)
    watch.add(seen(1, T0, action="key-guessing", status=429, needs=""))
    assert incidents(watch, T0) == {"security.refused.source.aa": T0}
    off = Watch(replace(LIMITS, refused_by_source=0))
    off.add(seen(1, T0, action="key-guessing", status=429, needs=""))
    assert off.going_on(T0) == []


def test_refusals_from_everywhere_together_are_worse() -> None:
    watch = Watch(LIMITS)
    for number in range(1, 6):
        watch.add(seen(number, T0 + number, source=f"s{number}", status=(401, 403, 429, 401, 403)[number - 1]))
    (one,) = watch.going_on(T0 + 10)
    assert (one.incident, one.level, one.n) == ("security.refused.all", AlertLevel.CRITICAL, 5)


def test_what_is_not_refused_for_key_role_or_rate_counts_for_nothing() -> None:
    watch = Watch(LIMITS)
    for number in range(1, 50):
        watch.add(seen(number, T0 + number, status=(200, 404, 409, 422, 503)[number % 5]))
    assert watch.going_on(T0 + 60) == []


def test_a_record_that_stands_for_several_refusals_counts_as_so_many() -> None:
    further: dict[str, Any] = {"action": "further-refusals", "status": 429}
    watch = Watch(LIMITS)
    watch.add(seen(1, T0, **further, source="aa", times=0))
    watch.add(seen(2, T0, **further, source="several", times=4))
    assert incidents(watch, T0) == {}
    watch.add(seen(3, T0 + 1, **further, source="bb", times=3))
    assert set(incidents(watch, T0 + 1)) == {"security.refused.source.bb", "security.refused.all"}


def test_a_lesser_key_at_an_admins_things() -> None:
    watch = Watch(replace(LIMITS, new_places=False))
    tries: dict[str, Any] = {"actor": "app", "role": "operator", "status": 403, "needs": "admin", "changes": True}
    watch.add(seen(1, T0, **tries, source="a"))
    watch.add(seen(2, T0 + 1, **{**tries, "changes": False}, source="b"))  # only asked
    watch.add(seen(3, T0 + 2, **{**tries, "needs": "operator"}, source="c"))
    watch.add(seen(4, T0 + 3, **{**tries, "role": "none"}, source="d"))
    assert watch.going_on(T0 + 3) == []
    watch.add(seen(5, T0 + 4, **tries, source="e"))
    found = {one.incident: one for one in watch.going_on(T0 + 5)}
    assert "'app'" in found["security.admin_changes.app"].message


def test_a_key_at_a_second_place_is_new_once_and_the_first_is_home() -> None:
    uses: dict[str, Any] = {"actor": "ops", "role": "admin", "status": 200, "action": "key-use"}
    watch = Watch(LIMITS, [("boss", "admin", "home", 5)])
    watch.add(seen(1, T0, **uses, source="home"))
    watch.add(seen(2, T0 + 1, **{**uses, "role": "client", "actor": "app"}, source="x"))
    watch.add(seen(3, T0 + 1, **{**uses, "role": "client", "actor": "app"}, source="y"))
    assert watch.going_on(T0 + 1) == []
    watch.add(seen(4, T0 + 2, **uses, source="away"))
    watch.add(seen(5, T0 + 3, **{**uses, "actor": "boss"}, source="bus"))
    found = incidents(watch, T0 + 3)
    assert found == {"security.new_place.ops.away": T0 + 2, "security.new_place.boss.bus": T0 + 3}
    watch.add(seen(6, T0 + 6000, **uses, source="away"))
    assert incidents(watch, T0 + 6000) == {}
    clients = Watch(replace(LIMITS, new_places_of_clients=True))
    for number, source in enumerate(("x", "y"), 1):
        clients.add(seen(number, T0 + number, **{**uses, "role": "client", "actor": "app"}, source=source))
    assert [one.incident for one in clients.going_on(T0 + 2)] == ["security.new_place.app.y"]
    silent = Watch(replace(LIMITS, new_places=False), [("ops", "admin", "home", 5), ("ops", "admin", "away", T0)])
    assert silent.going_on(T0) == []


def test_a_rule_at_nought_is_off() -> None:
    watch = Watch(Limits(1000, 5000, 0, 0, 0, new_places=True))
    for number in range(1, 200):
        watch.add(seen(number, T0, status=403, needs="admin", changes=True, role="viewer"))
    assert watch.going_on(T0) == []


records = st.lists(
    st.tuples(
        st.integers(0, 900), st.sampled_from("abc"), st.sampled_from([200, 401, 403]),
        st.sampled_from(["anonymous", "ops", "app"]),
    ), max_size=60,
)  # fmt: skip


@given(records, st.integers(0, 60))
def test_whoever_begins_later_from_the_table_and_takes_some_twice_tells_the_same(items: list[Any], taken: int) -> None:
    at, all_of_it = T0, []
    for number, (more, source, status, actor) in enumerate(items, 1):
        at += more
        role = "none" if status == 401 else {"ops": "admin", "app": "viewer", "anonymous": "none"}[actor]
        all_of_it.append(seen(number, at, source=source, status=status, actor=actor, role=role, needs="admin", changes=True))
    whole, later = Watch(LIMITS), Watch(LIMITS)
    for one in all_of_it:
        whole.add(one)
    for one in [*all_of_it[:taken], *all_of_it]:
        later.add(one)
    assert whole.going_on(at) == later.going_on(at)
    assert whole.going_on(at + LIMITS.quiet_ms + 1) == []
