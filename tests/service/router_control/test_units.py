"""Export and erasure page by page: every test that has its salt, every stream, from where the last page ended."""

import json
from typing import Any

import pytest

from schemas import subjects
from schemas.v1.units import UnitFact, UnitReply
from services.router.control import units
from services.router.domain.assignment import partition_of, unit_hash
from tests.harness import NatsServer, eventually
from tests.service.router_control.sides import Others, Side, others, side, stream_messages

UNIT = "somebody@somewhere"
PAGES = 3
"""So many pages has each stream of each test, ten messages long each."""


def page(question: dict[str, Any]) -> UnitReply:
    last = question["after"] + 10
    shown = UnitReply(last=last, complete=last == 10 * PAGES)
    if question["stream"] == "WINDOWS":
        return shown.model_copy(update={"held": [f"set{last}"], "windows": 1, "first_ms": last, "last_ms": last})
    fact = UnitFact(at_ms=last, kind="final", variant="b", share_bp=100, latency_us=last)
    gone = {"erased": 1, "left": 0} if question["erase"] else {}
    return shown.model_copy(update={"facts": [fact], "batches": 1, **gone})


async def three_tests(router: Side, others: Others) -> list[str]:
    """Three tests that have their salts: one that ended, its successor, and one of another model."""
    others.answers[subjects.query("unit")] = page
    first = await router.start_test()
    await router.post("/rollback")
    return sorted([first, await router.start_test(), await router.start_test(model_a="other")])


async def all_pages(router: Side, verb: str) -> list[dict[str, Any]]:
    found, cursor = [], None
    while True:
        found.append(await router.post(f"/units/{verb}", {"unit": UNIT} | ({"cursor": cursor} if cursor else {})))
        cursor = found[-1]["next"]
        if cursor is None:
            return found


@pytest.mark.parametrize("seconds", [0.0, 60.0])
async def test_every_place_is_looked_at_once_in_order_however_many_calls_it_takes(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(units, "CALL_S", seconds)
    async with others(nats_server) as these, side(nats_server) as router:
        tests = await three_tests(router, these)
        pages = await all_pages(router, "export")
        assert len(pages) == (1 if seconds else 2 * PAGES * len(tests))
        asked = [(q["test_id"], q["stream"], q["after"]) for s, q in these.asked if s == subjects.query("unit")]
        places = [(t, s, 10 * n) for t in tests for s in ("WINDOWS", "METRICS") for n in range(PAGES)]
        assert asked == places
        assert [t["test_id"] for one in pages for t in one["tests"]][0 :: 1 if seconds else 2 * PAGES] == tests
        shown = [test for one in pages for test in one["tests"] if test["test_id"] == tests[0]]
        assert sorted(name for one in shown for name in one["held"]) == ["set10", "set20", "set30"]
        assert {one["remains"] for one in pages} == {None}
        assert [fact["latency_us"] for one in shown for fact in one["facts"]] == [10, 20, 30]
        salts = {salt.test_id: salt.version for salt in router.control.parts.salts.all()}
        for test_id, version in salts.items():
            key = router.control.parts.salts.key(version)
            assert key is not None
            own = f"{unit_hash(key, UNIT.encode()):016x}"
            assert {q["unit"] for s, q in these.asked if s == subjects.query("unit") and q["test_id"] == test_id} == {own}


async def test_erasure_buries_the_unit_in_every_test_before_anything_takes_its_time(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "CALL_S", 0.0)
    async with others(nats_server) as these, side(nats_server) as router, side(nats_server) as second:
        tests = await three_tests(router, these)
        first = await router.post("/units/erase", {"unit": UNIT})
        assert first["next"] == f"{tests[0]}/METRICS/10"
        assert "until the test's salt is destroyed" in first["remains"]
        await eventually(lambda: {test for test, _ in second.path.erased} == set(tests))  # all of them at once
        erased = dict(router.path.erased)
        pages = [first]
        while pages[-1]["next"]:
            pages.append(await router.post("/units/erase", {"unit": UNIT, "cursor": pages[-1]["next"]}))
        assert [(one["tests"][0]["test_id"], one["tests"][0]["batches"]) for one in pages] == [(t, 1) for t in tests for _ in range(PAGES)]
        assert len({t["erased_at"] for one in pages for t in one["tests"] if t["test_id"] == tests[0]}) == 1
        assert set(router.path.advanced) == {partition_of(unit) for unit in erased.values()}
        assert all(q["erase"] for s, q in these.asked if s == subjects.query("unit"))
        again = await router.post("/units/export", {"unit": UNIT})
        assert again["tests"][0]["erased_at"] == first["tests"][0]["erased_at"]
        assert "until the test's salt is destroyed" in again["remains"]


async def test_a_unit_is_named_by_a_hash_in_the_audit_and_nowhere_else(nats_server: NatsServer) -> None:
    async with others(nats_server) as these, side(nats_server) as router:
        await three_tests(router, these)
        await router.post("/units/export", {"unit": UNIT})
        await router.post("/units/erase", {"unit": UNIT, "source": "user"})
        refused = (
            ({"unit": UNIT, "source": "client_address"}, "admin", 422), ({"unit": UNIT, "source": "shoe_size"}, "admin", 422),
            ({"unit": ""}, "admin", 422), ({"unit": "x" * 9000}, "admin", 422), ({}, "admin", 422), ({"unit": 7}, "admin", 422),
            ({"unit": UNIT, "cursor": "../../etc"}, "admin", 422), ({"unit": UNIT}, "operator", 403), ({"unit": UNIT}, None, 401),
        )  # fmt: skip
        for verb in ("export", "erase"):
            for body, role, status in refused:
                reply = await router.call("POST", f"/units/{verb}", role, json=body)
                assert reply.status_code == status, (body, reply.text)

        async def recorded() -> list[dict[str, Any]] | None:
            found = await stream_messages(nats_server, "metrics", "AUDIT", subjects.audit("router"))
            mine = [r for r in (json.loads(m.data)["data"] for m in found) if r["action"].startswith("units-")]
            return mine if len(mine) == 2 * (1 + len(refused)) else None

        records = await eventually(recorded)
        assert UNIT not in json.dumps(records)
        alias = {record["target"] for record in records if record["status"] == 200}
        assert alias == {f"unit:{router.control.parts.salts.alias(UNIT.encode())}"}
        hashes = {stone.unit for stones in router.control.parts.erasures._stones.values() for stone in stones.values()}
        assert not [one for one in hashes if one in json.dumps(records)]
