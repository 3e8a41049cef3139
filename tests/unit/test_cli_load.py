"""What the load generator sends and when, and what it takes for an answer."""

import asyncio
import itertools

import pytest
from typer.testing import CliRunner

from services import cli
from services._cli.load import Load, drive
from services._cli.scenarios import SCENARIOS, Shape
from tests.unit.test_cli_strangers import ANSWERS, Stranger


def due(load: Load, seconds: float) -> list[float]:
    return list(itertools.takewhile(lambda at: at < seconds, load.schedule()))


def test_requests_are_due_as_the_shape_says_and_as_many_as_the_rate() -> None:
    steady = due(Load("", "", "m", 10), 60)
    assert (len(steady), steady[7]) == (600, 0.7)
    for kind in ("burst", "drift"):
        found = due(Load("", "", "m", 10, shape=Shape(kind)), 60)
        assert len(found) == pytest.approx(600, rel=0.05), kind
        assert found == sorted(found)
    bursts = due(Load("", "", "m", 10, shape=Shape("burst")), 10)
    assert len([at for at in bursts if at < 2]) > 3 * len([at for at in bursts if at >= 2])
    drift = Shape("drift")
    assert (drift.repeats(0), drift.repeats(60), drift.factor(0), drift.factor(600)) == (1, 8, 0.5, 1.5)
    assert {name for name, one in SCENARIOS.items() if one.bad} == {"bad-canary", "slow-canary"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("answered", "status"), [("a page", "200"), ("the way to a log-in", "302"), ("an empty object", "200")])
async def test_what_is_no_completion_is_a_failure_and_no_redirect_is_followed(answered: str, status: str, stream: bool) -> None:
    server = Stranger()
    try:
        server.answer = ANSWERS[answered]
        async with asyncio.timeout(20):
            tally = await drive(Load(server.url, "key", "m", 100, stream=stream), requests=2)
    finally:
        server.listening.close()
    assert (tally.sent, tally.failed, dict(tally.by_status)) == (2, 2, {status: 2})
    if status == "200":
        assert "no completion" in tally.last_error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("stable", "--scenario", "slow-canary"), "a client cannot make 'stable' worse: leave it out"),
        (("--scenario", "worse"), "use one of bad-canary, slow-canary, drift, burst"),
        ((), "name a model"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_does(arguments: tuple[str, ...], words: str) -> None:
    done = CliRunner().invoke(cli.app, ["load", *arguments])
    assert (done.exit_code, words in done.output) == (2, True), done.output
