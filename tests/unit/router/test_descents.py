"""When a descent's next step is due, and when what it waits for is worth a write; with a clock of the test's own."""

from types import SimpleNamespace

import pytest

from schemas.v1.experiment import Experiment, RollbackOrder
from services.router.control import descents as module
from services.router.control.descents import Descents
from services.router.domain import commands as c
from services.router.domain.capacity import Load
from services.router.domain.experiment import apply

IDLE = Load(workers=1, capacity=8, running=0.0, peak=0.0)
QUEUED = Load(workers=1, capacity=8, running=0.0, peak=0.0, queued=1)
SLOW = Load(workers=1, capacity=8, running=0.0, peak=0.0, slower=9.0)
QUEUE, LATENCY = "the queue of 'm' to empty", "'m' to answer as fast as usual"
T0 = 1_000_000


class Router:
    """One router's descents, its clocks and what it thinks of the stable model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stable, self.clock = IDLE, 0.0
        path = SimpleNamespace(load=lambda model: self.stable if model == "m" else IDLE)
        self.descents = Descents(SimpleNamespace(path=lambda: path), step_s=10)  # type: ignore[arg-type]
        self._monkeypatch = monkeypatch

    def look(self, test: Experiment, *, later: float = 0.0, skew: float = 0.0) -> c.Descend | c.Wait | None:
        self.clock += later
        self._monkeypatch.setattr(module, "monotonic", lambda: self.clock)
        return self.descents.command(test, T0 + round((self.clock + skew) * 1000))

    def follow(self, test: Experiment, command: c.Descend | c.Wait | None, skew: float = 0.0) -> Experiment:
        assert command is not None
        return apply(test, command, T0 + round((self.clock + skew) * 1000))[0]


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Router:
    return Router(monkeypatch)


@pytest.fixture
def rolling() -> Experiment:
    test, _ = apply(None, c.Start("t", "m", "n", 4000, 60, "s", "ops"), T0)
    order = RollbackOrder(rule="operator", reason="x", actor="ops", at_ms=T0)
    return apply(test, c.BeginRollback("t", order), T0)[0]


def test_the_first_step_is_made_at_once_and_the_next_when_the_stable_model_could_show_how_it_takes_it(
    router: Router, rolling: Experiment
) -> None:
    first = router.look(rolling)
    assert first == c.Descend("t", 2, 2000)
    test = router.follow(rolling, first)
    assert router.look(test) is None
    assert router.look(test, later=9.9) is None
    assert router.look(test, later=0.1) == c.Descend("t", 3, 1000)


def test_a_step_made_by_a_router_whose_clock_is_ahead_holds_nobody_up_for_long(
    router: Router, rolling: Experiment
) -> None:
    test = router.follow(rolling, router.look(rolling), skew=3600)
    assert router.look(test) is None
    assert router.look(test, later=9.9) is None
    assert router.look(test, later=0.2) == c.Descend("t", 3, 1000)


def test_nothing_is_done_for_tests_that_go_down_no_more(router: Router, rolling: Experiment) -> None:
    steady, _ = apply(None, c.Start("u", "m", "n", 4000, 60, "s", "ops"), T0)
    assert router.look(steady) is None
    stopping, _ = apply(rolling, c.BeginStop("t", "x", "ops"), T0)
    assert router.look(stopping) is None
    router.look(rolling)
    router.descents.keep(set())
    assert router.descents._seen == {}


def test_what_is_waited_for_is_written_after_a_moment_and_once(router: Router, rolling: Experiment) -> None:
    router.stable = QUEUED
    assert router.look(rolling) is None
    assert router.look(rolling, later=0.9) is None
    found = router.look(rolling, later=0.1)
    assert found == c.Wait("t", 2, QUEUE)
    test = router.follow(rolling, found)
    for _ in range(200):
        assert router.look(test, later=0.25) is None
    router.stable = IDLE
    assert router.look(test, later=0.25) == c.Descend("t", 3, 2000)


def test_reasons_that_take_turns_are_written_once_and_a_lasting_one_replaces_the_first(
    router: Router, rolling: Experiment
) -> None:
    writes, test = 0, rolling
    for n in range(400):
        router.stable = (QUEUED, SLOW)[n % 2]
        found = router.look(test, later=0.25)
        if found is not None:
            writes, test = writes + 1, router.follow(test, found)
    assert writes == 1
    router.stable = SLOW if test.descent and test.descent.waiting == QUEUE else QUEUED
    lasting = [found for _ in range(121) if (found := router.look(test, later=0.25)) is not None]
    assert isinstance(lasting[0], c.Wait)
    assert {QUEUE, LATENCY} == {lasting[0].waiting, test.descent.waiting if test.descent else ""}


def test_two_routers_that_disagree_write_seldom(monkeypatch: pytest.MonkeyPatch, rolling: Experiment) -> None:
    one, two = Router(monkeypatch), Router(monkeypatch)
    one.stable, two.stable = QUEUED, SLOW
    writes, test = 0, rolling
    for _ in range(4 * 120):
        for router in (one, two):
            found = router.look(test, later=0.25)
            if found is not None:
                writes, test = writes + 1, router.follow(test, found)
    assert writes <= 120 / 15
