"""The canary's lease on a clock that is an argument."""

from services.router.domain.lease import LEASE_S, Lease, rollback_due

DUE = {"check_interval_s": 30.0, "connected_for_s": 1000.0, "auto_rollback": True, "active": True}


def test_a_lease_holds_for_fifteen_seconds_after_the_counter_last_grew() -> None:
    lease = Lease(100.0)
    lease.heard("m1", 1, 101.0)
    lease.heard("m1", 2, 102.0)
    assert not lease.lapsed(102.0 + LEASE_S - 0.01)
    assert lease.lapsed(102.0 + LEASE_S)
    assert lease.lapsed_for(102.0 + LEASE_S + 4) == 4


def test_a_counter_that_stands_still_renews_nothing() -> None:
    lease = Lease(0.0)
    for second in range(1, 30):
        lease.heard("m1", 5, float(second))
    assert lease.lapsed(16.0)


def test_a_router_that_starts_later_gives_the_lease_its_full_length() -> None:
    assert not Lease(1000.0).lapsed(1000.0 + LEASE_S - 0.1)
    assert Lease(1000.0).lapsed(1000.0 + LEASE_S)


def test_a_new_leader_renews_with_a_smaller_counter() -> None:
    lease = Lease(0.0)
    lease.heard("m1", 900, 1.0)
    lease.heard("m2", 1, 10.0)
    lease.heard("m2", 2, 11.0)
    assert not lease.lapsed(25.0)
    lease.heard("m1", 900, 26.0)
    assert lease.lapsed(26.0)


def test_only_so_many_holders_are_remembered() -> None:
    lease = Lease(0.0)
    for i in range(100):
        lease.heard(f"m{i}", 1, float(i))
    assert len(lease.counters) <= 8


def test_the_rollback_is_due_five_checks_after_the_lapse() -> None:
    lease = Lease(0.0)
    assert not rollback_due(lease, LEASE_S + 149.9, **DUE)  # type: ignore[arg-type]
    assert rollback_due(lease, LEASE_S + 150, **DUE)  # type: ignore[arg-type]


def test_the_rollback_is_not_due_without_permission_or_connection() -> None:
    lease = Lease(0.0)
    at = LEASE_S + 1000
    assert rollback_due(lease, at, **DUE)  # type: ignore[arg-type]
    for name, value in (("auto_rollback", False), ("active", False), ("connected_for_s", LEASE_S - 1)):
        assert not rollback_due(lease, at, **{**DUE, name: value})  # type: ignore[arg-type]
