"""Keys, roles and the header."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services._runtime.settings import ConfigError
from services._runtime.settings_model import ApiKey
from services.router.adapters.keys import load_keys
from services.router.domain.auth import KeyRing, Principal, Role, StoredKey, require
from services.router.domain.door import Door
from services.router.domain.refusals import Forbidden, Unauthenticated


def ring(**keys: Role) -> KeyRing:
    return KeyRing([
        StoredKey(Principal(name, role), hashlib.sha256(f"secret-{name}".encode()).digest()) for name, role in keys.items()
    ])  # fmt: skip


def authorize(keys: KeyRing, header: str | None, needed: Role) -> Principal:
    who = Door(keys, failed_per_minute=0).enter(header, "192.0.2.1", 0.0)
    require(who, needed)
    return who


RING = ring(app=Role.CLIENT, eye=Role.VIEWER, ops=Role.OPERATOR, root=Role.ADMIN)


@pytest.mark.parametrize("needed", list(Role))
def test_each_role_includes_those_before_it(needed: Role) -> None:
    for name in ("app", "eye", "ops", "root"):
        header = f"Bearer secret-{name}"
        who = authorize(RING, header, Role.CLIENT)
        assert who.name == name
        if who.role >= needed:
            assert authorize(RING, header, needed) is who
        else:
            with pytest.raises(Forbidden, match=f"this needs {needed.label}"):
                authorize(RING, header, needed)


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Basic c2VjcmV0", "secret-ops", "Bearer secret-op", "Bearer " + "x" * 5000],
)
def test_what_is_no_good_key_is_401_and_names_the_scheme(header: str | None) -> None:
    with pytest.raises(Unauthenticated) as refused:
        authorize(RING, header, Role.CLIENT)
    assert refused.value.headers()["WWW-Authenticate"].startswith("Bearer")
    assert "secret" not in refused.value.message


def test_the_scheme_is_case_insensitive_and_outer_blanks_do_not_count() -> None:
    assert authorize(RING, "bearer  secret-ops ", Role.VIEWER).name == "ops"


@given(st.text())
def test_any_text_is_refused_without_an_accident(token: str) -> None:
    if not token.strip().startswith("secret-"):
        with pytest.raises(Unauthenticated):
            authorize(RING, f"Bearer {token}", Role.CLIENT)


def test_what_is_no_key_leaves_nothing_behind() -> None:
    many = ring(ops=Role.OPERATOR)
    for n in range(5000):
        assert many.principal(f"wrong-{n}") is None
    assert many.principal("secret-ops") is many.principal("secret-ops")
    assert len(many) == 1


def test_lone_surrogates_from_a_header_are_refused() -> None:
    assert RING.principal("\udcff") is None


def test_keys_come_from_the_environment_or_as_digests() -> None:
    digest = hashlib.sha256(b"two").hexdigest()
    loaded = load_keys(
        [
            ApiKey(name="one", role="admin", key_env="K1"),
            ApiKey(name="two", role="client", key_sha256=digest.upper(), requests_per_minute=30, control_per_minute=5),
        ],
        {"K1": "first "},
    )
    assert loaded.principal("first") == Principal("one", Role.ADMIN)
    assert loaded.principal("two") == Principal("two", Role.CLIENT, 30, 5)
    assert len(loaded) == 2


def test_a_missing_variable_and_a_shared_key_stop_start_up() -> None:
    with pytest.raises(ConfigError, match="variable K1, which is not set"):
        load_keys([ApiKey(name="one", role="admin", key_env="K1")], {})
    with pytest.raises(ConfigError, match="'two' and 'one' are the same key"):
        load_keys(
            [ApiKey(name="one", role="admin", key_env="K1"), ApiKey(name="two", role="client", key_env="K2")],
            {"K1": "same", "K2": "same"},
        )
