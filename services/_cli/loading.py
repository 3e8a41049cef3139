"""`cypria load`: plain traffic, a shaped one, or a rehearsal."""

import asyncio
from dataclasses import dataclass
from typing import NoReturn

from services._cli import api, show
from services._cli.load import Load, Tally, shown
from services._cli.scenarios import SCENARIOS, STEADY, Scenario, Shape


@dataclass(frozen=True)
class Order:
    """What the command line asks for."""

    model: str | None
    scenario: str | None
    rate: float
    seconds: float
    stream: bool
    users: int
    max_tokens: int
    split: float
    port: int
    json: bool


def run(order: Order) -> NoReturn:
    """Do it; ends the command with 1 where it did not go as it should."""
    scenario = _scenario(order)
    if order.model is not None:
        _plain(order, order.model, scenario.shape if scenario else STEADY)
    if scenario is None:
        api.fail("name a model, such as `cypria load stable`, or rehearse a scenario: --scenario bad-canary", 2)
    _rehearsed(order, scenario)


def _scenario(order: Order) -> Scenario | None:
    if order.scenario is None:
        return None
    if order.scenario not in SCENARIOS:
        api.fail(f"--scenario is '{order.scenario}': use one of {', '.join(SCENARIOS)}", 2)
    scenario = SCENARIOS[order.scenario]
    if order.model is not None and scenario.bad:
        api.fail(
            f"a client cannot make '{order.model}' worse: leave it out, and {scenario.name} is rehearsed with two "
            "throw-away engines",
            2,
        )
    return scenario


def _plain(order: Order, model: str, shape: Shape) -> NoReturn:
    tally = asyncio.run(shown(_load(order, model, shape), order.seconds))
    seen = {"sent": tally.sent, "failed": tally.failed, "by_variant": dict(tally.by_variant),
            "by_status": dict(tally.by_status), "last_error": tally.last_error or None}  # fmt: skip
    if order.json:
        show.as_json(seen)
    else:
        show.console.print(
            f"sent {tally.sent}, failed {tally.failed}, "
            f"by variant {dict(tally.by_variant)}, by status {dict(tally.by_status)}"
        )
        _last(tally)
    raise SystemExit(1 if tally.failed else 0)


def _rehearsed(order: Order, scenario: Scenario) -> NoReturn:
    from services._cli import rehearse

    load = _load(order, rehearse.STABLE, scenario.shape, users=order.users or rehearse.USERS)
    found = asyncio.run(
        rehearse.rehearse(scenario, load, order.seconds, port=order.port, split=order.split, quiet=order.json)
    )
    if order.json:
        show.as_json(found.data())
    else:
        for line in rehearse.told(found):
            show.console.print(line, highlight=False, soft_wrap=True)
        _last(found.tally)
    raise SystemExit(0 if found.as_expected else 1)


def _load(order: Order, model: str, shape: Shape, users: int | None = None) -> Load:
    token = api.key() or api.fail("no key: set CYPRIA_API_KEY")
    return Load(
        api.url(), token, model, order.rate, stream=order.stream, max_tokens=order.max_tokens, tls=api.tls_context(),
        users=order.users if users is None else users, shape=shape,
    )  # fmt: skip


def _last(tally: Tally) -> None:
    if tally.failed:
        show.console.print(show.styled(f"the last failure: {tally.last_error}"), soft_wrap=True)
