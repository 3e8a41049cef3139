"""A start and a change of one of its models at the same time: exactly one of them happens, however they interleave."""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from typing import Any

from schemas import subjects
from schemas.v1.models import ModelEntry
from tests.harness import NatsServer
from tests.service.router_control.sides import Side, side

CHANGE = ("claim", "read tests", "confirm or take back")
START = ("read a", "read b", "write the test", "read a again", "read b again")


class Turnstile:
    """Lets two parties through step by step in a given order; a party that is done no longer holds up the other."""

    def __init__(self, order: str) -> None:
        self._order = list(order)
        self._done: set[str] = set()
        self._moved = asyncio.Condition()
        self.taken = ""

    async def step(self, party: str, work: Callable[[], Awaitable[Any]]) -> Any:
        async with self._moved:
            await self._moved.wait_for(lambda: self._next() in {party, ""})
            try:
                return await work()
            finally:
                self.taken += party
                if self._order:
                    self._order.pop(0)
                self._moved.notify_all()

    async def finish(self, party: str) -> None:
        async with self._moved:
            self._done.add(party)
            self._moved.notify_all()

    def _next(self) -> str:
        while self._order and self._order[0] in self._done:
            self._order.pop(0)
        return self._order[0] if self._order else ""


def gated(monkeypatch: Any, target: Any, methods: tuple[str, ...], party: str, gate: Turnstile) -> None:
    for name in methods:
        real = getattr(target, name)

        def through(*args: Any, real: Any = real, **options: Any) -> Awaitable[Any]:
            return gate.step(party, lambda: real(*args, **options))

        monkeypatch.setattr(target, name, through)


async def put(one: Side, *names: str) -> None:
    """Models that are settled, on no worker."""
    kv = await one.bus.js.key_value("models")
    for name in names:
        spec = {"name": name, "engine": "vllm", "path": "/models/x"}
        await kv.put(subjects.token(name), ModelEntry(name=name, spec=spec, stage="settled").model_dump_json().encode())


def change_of(name: str, kind: str) -> tuple[str, str, Any]:
    replace = {"name": name, "engine": "vllm", "path": "/models/y", "replace": True}
    return {
        "replace": ("POST", "/models", replace), "unload": ("POST", f"/models/{name}/unload", None),
        "reload": ("POST", f"/models/{name}/load", {"reload": True}), "remove": ("DELETE", f"/models/{name}", None),
    }[kind]  # fmt: skip


async def one_of_both_happened(one: Side, name: str, started: Any, changed: Any) -> str:
    """Who won; that what lost left nothing behind."""
    entry = await one.control.models.fresh(name)
    live = [test for test in await one.control.experiments.fresh_live() if name in {test.model_a, test.model_b}]
    assert entry is not None
    if changed.status_code == 200:
        gone = {(404, "model_not_found")} if entry.desired == "removed" else set()
        said = (started.status_code, started.json()["error"]["code"])
        assert said in {(409, "model_changing"), (409, "model_unloaded")} | gone, started.text
        assert live == []
        assert (entry.generation, entry.stage in {"changing", "settled"}) == (2, True)
        return "change"
    assert (changed.status_code, changed.json()["error"]["code"]) == (409, "model_in_use")
    assert started.status_code == 200, started.text
    assert len(live) == 1
    assert (entry.generation, entry.stage, entry.desired, entry.before) == (1, "settled", "loaded", None)
    return "start"


async def test_exactly_one_happens_in_every_order_of_their_steps(nats_server: NatsServer, monkeypatch: Any) -> None:
    places = [*itertools.combinations(range(len(CHANGE) + len(START)), len(CHANGE))]
    won: list[str] = []
    # No workers: what the change wants is never reached, so that nothing else moves.
    async with side(nats_server, names=()) as changer, side(nats_server, names=()) as starter:
        names = [f"m{number}" for number in range(len(places))]
        await put(changer, *names, *(f"a-{name}" for name in names))
        for one in (changer, starter):
            one.path.beats = list  # type: ignore[method-assign]
            while len(one.control.models.entries()) < 2 * len(names):
                await asyncio.sleep(0.01)
        for name, chosen in zip(names, places, strict=True):
            order = "".join("c" if place in chosen else "s" for place in range(len(CHANGE) + len(START)))
            gate = Turnstile(order)
            with monkeypatch.context() as patch:
                gated(patch, changer.control.models, ("claim", "confirm", "take_back"), "c", gate)
                gated(patch, changer.control.experiments, ("fresh_live",), "c", gate)
                patch.setattr(changer.control.experiments, "live", list)  # as far behind as a mirror can be
                gated(patch, starter.control.models, ("fresh",), "s", gate)
                gated(patch, starter.control.experiments, ("change",), "s", gate)

                async def run(party: str, work: Awaitable[Any], gate: Turnstile = gate) -> Any:
                    try:
                        return await work
                    finally:
                        await gate.finish(party)

                method, path, body = change_of(name, "replace")
                started, changed = await asyncio.gather(
                    run("s", starter.call("POST", "/start", json={"model_a": f"a-{name}", "model_b": name})),
                    run("c", changer.call(method, path, json=body)),
                )
            won.append(await one_of_both_happened(changer, name, started, changed))
            assert gate.taken[0] == order[0]
    assert set(won) == {"start", "change"}
    assert won[0] == "change", "it came first"
    assert won[-1] == "start", "it came first"


async def test_exactly_one_happens_between_two_routers_in_a_hurry(nats_server: NatsServer) -> None:
    won: list[str] = []
    draw = random.Random(7)
    async with side(nats_server, names=()) as one, side(nats_server, names=()) as two:
        kinds = ["replace", "unload", "reload", "remove"] * 6
        names = [f"m{number}" for number in range(len(kinds))]
        await put(one, *names, *(f"a-{name}" for name in names))
        for router in (one, two):
            router.path.beats = list  # type: ignore[method-assign]
            while len(router.control.models.entries()) < 2 * len(names):
                await asyncio.sleep(0.01)

        async def later(work: Callable[[], Awaitable[Any]], up_to: float) -> Any:
            await asyncio.sleep(draw.random() * up_to)
            return await work()

        lead = 1.0  # of the start: moved by who won, so that the race stays close on any machine
        for number, (name, kind) in enumerate(zip(names, kinds, strict=True)):
            changer, starter = (one, two) if number % 2 else (two, one)
            method, path, body = change_of(name, kind)
            pair = (f"a-{name}", name) if number % 3 else (name, f"a-{name}")
            started, changed = await asyncio.gather(
                later(lambda s=starter, p=pair: s.call("POST", "/start", json={"model_a": p[0], "model_b": p[1]}), 0.01 / lead),
                later(lambda c=changer, m=method, p=path, b=body: c.call(m, p, json=b), 0.01 * lead),
            )
            won.append(await one_of_both_happened(one, name, started, changed))
            lead *= 1.5 if won[-1] == "change" else 0.6
    assert set(won) == {"start", "change"}
