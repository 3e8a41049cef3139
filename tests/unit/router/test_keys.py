"""What becomes of keys, without a bus."""

import contextlib
import hashlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.v1.keys import KeyEntry
from services.router.domain import keys
from services.router.domain.auth import KeyRing, Principal, Role, StoredKey, still_good
from services.router.domain.keys import NewKey
from services.router.domain.refusals import Conflict, NotFound, Refused, Unauthenticated

NOW = 1_000_000
ROOT = StoredKey(Principal("root", Role.ADMIN), hashlib.sha256(b"root").digest())
APP = StoredKey(Principal("app", Role.CLIENT), hashlib.sha256(b"app").digest())


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def entry(name: str, role: str = "client", **fields: object) -> KeyEntry:
    return KeyEntry.model_validate({"name": name, "role": role, "sha256": sha(name), "created_ms": 1, **fields})


def names(configured: list[StoredKey], entries: list[KeyEntry], at_ms: int = NOW) -> tuple[set[tuple[str, str]], int | None]:
    found, ends = keys.good(configured, entries, at_ms)
    known = {hashlib.sha256(text.encode()).digest(): text for text in ("root", "app", "one", "two", "old", "new")}
    return {(key.principal.name, known[key.digest]) for key in found}, ends


@contextlib.contextmanager
def refused(code: str) -> Iterator[None]:
    with pytest.raises(Refused) as found:
        yield
    assert found.value.code == code


def test_what_is_good_at_a_moment_and_when_that_ends() -> None:
    assert names([ROOT], []) == ({("root", "root")}, None)
    one, two = entry("one", expires_ms=NOW + 50), entry("two", revoked_ms=NOW - 1)
    assert names([ROOT], [one, two]) == ({("root", "root"), ("one", "one")}, NOW + 50)
    assert names([ROOT], [one, two], NOW + 50) == ({("root", "root")}, None)
    turned = entry("k", sha256=sha("new"), previous_sha256=sha("old"), previous_until_ms=NOW + 10)
    assert names([], [turned]) == ({("k", "new"), ("k", "old")}, NOW + 10)
    assert names([], [turned], NOW + 10) == ({("k", "new")}, None)
    assert names([], [turned.model_copy(update={"revoked_ms": NOW})]) == (set(), None)


def test_a_revoked_hash_is_good_nowhere_and_another_key_of_the_name_is_another_key() -> None:
    ended = entry("app", source="config", revoked_ms=NOW)
    assert names([ROOT, APP], [ended]) == ({("root", "root")}, None)
    renewed = StoredKey(Principal("app", Role.CLIENT), hashlib.sha256(b"new").digest())
    assert names([renewed], [ended])[0] == {("app", "new")}
    # A key that was made here, and that somebody then wrote into the configuration.
    copied = StoredKey(Principal("copy", Role.ADMIN), bytes.fromhex(sha("one")))
    assert names([copied], [entry("one", revoked_ms=NOW)]) == (set(), None)


def test_a_name_is_taken_while_its_key_is_good() -> None:
    new = NewKey("one", "viewer", sha("new"), "root", NOW + 5)
    made = keys.create(None, new, [ROOT], [], NOW)
    assert (made.role, made.sha256, made.created_by, made.expires_ms, made.created_ms) == ("viewer", sha("new"), "root", NOW + 5, NOW)
    with refused("key_exists"):
        keys.create(entry("one"), new, [ROOT], [], NOW)
    for ended in (entry("one", revoked_ms=NOW), entry("one", expires_ms=NOW)):
        assert keys.create(ended, new, [ROOT], [ended], NOW).revoked_ms is None
    for name in ("root", "anonymous"):
        with refused("key_exists"):
            keys.create(None, NewKey(name, "viewer", sha("new"), "root"), [ROOT], [], NOW)
    many = [entry(f"k{n}") for n in range(keys.MAX_KEYS)]
    with refused("too_many_keys"):
        keys.create(None, new, [ROOT], many, NOW)
    assert keys.create(None, new, [ROOT], [*many[:-1], entry("x", expires_ms=NOW)], NOW)


def test_a_rotation_overlaps_and_never_outlives_the_key() -> None:
    before = entry("one", expires_ms=NOW + 100)
    after = keys.rotate(before, "one", sha("new"), 60, "root", [ROOT], NOW)
    assert (after.sha256, after.previous_sha256, after.previous_until_ms) == (sha("new"), sha("one"), NOW + 60)
    assert (after.rotated_ms, after.rotated_by, after.expires_ms) == (NOW, "root", NOW + 100)
    assert keys.rotate(before, "one", sha("new"), 500, "root", [ROOT], NOW).previous_until_ms == NOW + 100
    again = keys.rotate(after, "one", sha("two"), 60, "root", [ROOT], NOW + 1)
    assert again.previous_sha256 == sha("new"), "the oldest has ended"
    at_once = keys.rotate(before, "one", sha("new"), 0, "root", [ROOT], NOW)
    assert names([], [at_once])[0] == {("one", "new")}
    for ended, code in ((entry("one", revoked_ms=1), "key_revoked"), (entry("one", expires_ms=NOW), "key_expired")):
        with refused(code):
            keys.rotate(ended, "one", sha("new"), 60, "root", [ROOT], NOW)
    with pytest.raises(Conflict, match="key_env or key_sha256"):
        keys.rotate(None, "root", sha("new"), 60, "root", [ROOT], NOW)
    with pytest.raises(NotFound, match="no key 'nobody'"):
        keys.rotate(None, "nobody", sha("new"), 60, "root", [ROOT], NOW)


def test_revoking_ends_every_key_of_the_name_and_once_is_enough() -> None:
    made = entry("app", previous_sha256=sha("old"), previous_until_ms=NOW + 99)
    ended = keys.revocations("app", [ROOT, APP], [made], "root", NOW)
    assert [(e.source, e.revoked_ms, e.revoked_by) for e in ended] == [("api", NOW, "root"), ("config", NOW, "root")]
    assert [keys.place(e) for e in ended] == ["app", f"sha256:{sha('app')}"]
    assert names([ROOT, APP], ended) == ({("root", "root")}, None)
    assert keys.revocations("app", [ROOT, APP], ended, "root", NOW + 1) == []
    with refused("key_not_found"):
        keys.revocations("nobody", [ROOT], [], "root", NOW)


def test_the_last_admins_key_that_lasts_stays() -> None:
    with refused("last_admin_key"):
        keys.revocations("root", [ROOT, APP], [entry("one", "operator")], "root", NOW)
    with refused("last_admin_key"):  # the other one would end unnoticed
        keys.revocations("root", [ROOT], [entry("one", "admin", expires_ms=NOW + 10**9)], "root", NOW)
    with refused("last_admin_key"):
        keys.revocations("root", [ROOT], [entry("one", "admin", revoked_ms=1)], "root", NOW)
    lasting = entry("one", "admin")
    (ended,) = keys.revocations("root", [ROOT], [lasting], "one", NOW)
    with refused("last_admin_key"):
        keys.revocations("one", [ROOT], [lasting, ended], "one", NOW)
    assert keys.revocations("app", [ROOT, APP], [], "root", NOW), "of other keys nobody asks that"


def test_what_ended_long_ago_is_forgotten_but_never_a_revocation_of_a_configured_key() -> None:
    assert keys.forgettable(entry("one", revoked_ms=NOW - 101), NOW, 100)
    assert keys.forgettable(entry("one", expires_ms=NOW - 101), NOW, 100)
    for kept in (entry("one"), entry("one", expires_ms=NOW + 1), entry("one", revoked_ms=NOW - 99),
                 entry("app", source="config", revoked_ms=1)):  # fmt: skip
        assert not keys.forgettable(kept, NOW, 100)


def test_a_ring_takes_what_is_good_and_tells_when_that_changes() -> None:
    ring, told = KeyRing([ROOT, APP]), []
    ring.on_change(lambda: told.append(len(ring)))
    good = still_good(ring, "Bearer app")
    assert (good(), ring.principal("app")) == (True, APP.principal)
    ring.take([APP, ROOT])
    assert told == []
    ring.take([ROOT])
    assert (told, good(), ring.principal("app"), ring.configured) == ([1], False, None, (ROOT, APP))
    ring.take([ROOT, StoredKey(Principal("app", Role.ADMIN), APP.digest)])
    assert not good(), "the same key with another role is another key"
    assert not still_good(ring, "Bearer nobody")()
    with pytest.raises(Unauthenticated):
        still_good(ring, None)


DAY = 86_400_000


@given(st.integers(1, 400 * DAY), st.integers(0, 800 * DAY))
def test_a_key_is_said_to_end_soon_in_the_last_seven_days_or_the_last_half_and_then_to_have_ended(life: int, age: int) -> None:
    one = entry("k", created_ms=NOW, expires_ms=NOW + life)
    told = keys.expiry(one, NOW + age)
    soon = max(life - 7 * DAY, life - life // 2) <= age < life
    assert keys.ends_soon(one, NOW + age) == soon
    if soon:
        assert told is not None
        assert (told.level, told.resolved, told.incident) == ("WARNING", False, "key.k.expiry")
    elif life <= age <= life + 30 * DAY:
        assert told is not None
        assert (told.resolved, told.incident, told.at_ms) == (True, "key.k.expiry", NOW + life)
    else:
        assert told is None


def test_what_is_over_is_told_by_revocation_rotation_and_a_new_key_of_the_name() -> None:
    lasting = entry("k", created_ms=NOW, expires_ms=NOW + 100 * DAY)
    assert keys.expiry(lasting, NOW) is None
    assert "revoked" in str(keys.expiry(lasting.model_copy(update={"revoked_ms": NOW}), NOW))
    assert "rotated" in str(keys.expiry(lasting.model_copy(update={"rotated_ms": NOW}), NOW))
    assert "anew" in str(keys.expiry(lasting, NOW, told=True))
    assert keys.expiry(entry("k", source="config", revoked_ms=NOW), NOW) is None


@given(st.none() | st.integers(1, 1000), st.none() | st.integers(1, 1000), st.none() | st.integers(1, DAY))
def test_own_limits_go_with_the_key_and_its_successor(requests: int | None, control: int | None, ends: int | None) -> None:
    made = keys.create(None, NewKey("k", "client", sha("one"), "boss", NOW + DAY, requests, control), [ROOT], [], NOW)
    turned = keys.rotate(made, "k", sha("two"), 1000, "boss", [ROOT], NOW, None if ends is None else NOW + ends)
    assert turned.expires_ms == (NOW + DAY if ends is None else NOW + ends)
    found = {key.digest.hex(): key.principal for key in keys.good([ROOT], [turned], NOW)[0]}
    expected = Principal("k", Role.CLIENT, requests, control)
    assert [found.get(sha(name)) for name in ("one", "two")] == [expected, expected]
