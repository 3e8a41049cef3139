"""Units in facts: one hash for each test and unit, whichever router starts the test and whenever the salt comes."""

import asyncio

from schemas.v1.units import Tombstone
from services.router.domain.assignment import unit_hash
from tests.harness import NatsServer, eventually
from tests.service.router.rig import Rig
from tests.service.router_control.sides import side

USERS = [f"user-{n}" for n in range(40)]


async def asked(rig: Rig, user: str) -> str | None:
    """The test that a request of this user was assigned to, if any."""
    response = await rig.post(user=user)
    assert response.status_code == 200
    return response.headers.get("x-ab-test-id")


def expected(rig: Rig, version: int, user: str) -> str:
    assert rig.router.control
    key = rig.router.control.parts.salts.key(version)
    assert key is not None
    return f"{unit_hash(key, user.encode()):016x}"


async def test_a_start_on_another_router_never_leaves_a_hash_of_another_salt(rig: Rig, nats_server: NatsServer) -> None:
    await rig.worker("stable")
    await rig.worker("canary")
    tests: list[str] = []
    running = True

    async def traffic(users: list[str]) -> None:
        while running:
            for user in users:
                await asked(rig, user)

    async with side(nats_server) as other:
        clients = [asyncio.create_task(traffic(USERS[n::4])) for n in range(4)]
        try:
            for n in range(6):
                if n == 3:  # a router whose watch of the salts is just being renewed
                    await rig.router.control.parts.salts._mirror.stop()
                tests.append(await other.start_test(traffic_split_percent=50))
                for user in USERS[:5]:
                    await eventually(lambda user=user, test=tests[-1]: _is(rig, user, test))
                await other.post("/rollback")
                await eventually(lambda test=tests[-1]: not rig.router.control.experiments.by_id(test).live)
        finally:
            running = False
            await asyncio.gather(*clients)
        versions = {salt.test_id: salt.version for salt in other.control.parts.salts.all()}
    facts = [fact for fact in await rig.facts() if fact.sticky]
    assert {fact.test for fact in facts} == set(tests)
    for test in tests:
        assert {f.unit for f in facts if f.test == test} <= {expected(rig, versions[test], user) for user in USERS}
    # Nobody can tell by the hashes who took part in two tests.
    hashes = [{f.unit for f in facts if f.test == test} for test in tests]
    assert sum(map(len, hashes)) == len(set().union(*hashes))


async def _is(rig: Rig, user: str, test: str) -> bool:
    return await asked(rig, user) == test


async def test_without_its_salt_a_test_begins_nothing_and_says_so(rig: Rig) -> None:
    await rig.worker("stable")
    await rig.worker("canary")
    salts = rig.router.control.parts.salts
    test_id = await rig.start_test(traffic_split_percent=100)
    version = rig.router.control.experiments.by_id(test_id).unit_salt_version
    key = salts._keys.pop(version)
    rig.path.arms._guards.clear()  # as after a restart without it
    assert await asked(rig, "user-1") is None
    status = (await rig.client.get("/v1/ab-testing/status", headers={"Authorization": "Bearer admin-key"})).json()
    assert "unit_salt" in status["degraded"]
    salts._keys[version] = key
    assert await asked(rig, "user-1") == test_id
    (fact,) = await rig.facts()
    assert (fact.unit, fact.sticky) == (expected(rig, version, "user-1"), True)
    assert rig.path.degraded() == []


async def test_an_erased_unit_keeps_its_arm_and_leaves_no_hash_of_its_own(rig: Rig) -> None:
    await rig.worker("stable")
    await rig.worker("canary")
    test_id = await rig.start_test(traffic_split_percent=50)
    entry = rig.router.control.experiments.by_id(test_id)
    own = expected(rig, entry.unit_salt_version, "user-1")
    other = expected(rig, entry.unit_salt_version, "user-2")
    first = await rig.post(user="user-1")
    arm, token = first.headers["x-ab-test-variant"], first.headers["x-ab-feedback-token"]
    under_way = asyncio.create_task(rig.post(user="user-1", mode="slow:0.2"))
    await eventually(lambda: rig.path.in_flight(test_id)[arm])
    await rig.facts()  # what was admitted is on the bus before
    await rig.router.control.parts.erasures.erase(Tombstone(test_id=test_id, unit=own, at_ms=5))
    assert (await under_way).headers["x-ab-test-variant"] == arm
    for _ in range(3):
        assert (await rig.post(user="user-1")).headers["x-ab-test-variant"] == arm
    assert (await rig.client.post("/v1/ab-testing/feedback", json={"token": token, "thumbs": "up"})).status_code == 200
    await rig.post(user="user-2")
    batches = await rig.batches()
    facts = [fact for batch in batches for fact in batch.facts]
    assert [(f.unit == own, f.sticky, f.variant) for f in facts[:1]] == [(True, True, arm)]
    later = [fact for fact in facts[1:] if fact.unit != other]
    assert len(later) == 4
    assert all(not fact.sticky and fact.unit != own and fact.variant == arm for fact in later)
    assert len({fact.unit for fact in later}) == 4
    (said,) = [said for batch in batches for said in batch.feedback]
    assert (said.sticky, said.unit != own) == (False, True)
    named = [unit for batch in batches for arms in batch.admitted for unit in arms.units]
    assert (set(named), named.count(own) <= 2) == ({own, other}, True)  # for the two before, never after
    assert sum(arms.alone for batch in batches for arms in batch.admitted) == 3
