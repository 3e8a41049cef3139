"""How many routers serve."""

from services.router.domain import peers
from services.router.domain.peers import GONE_S, Peers


def test_three_missed_beats_and_a_router_is_gone() -> None:
    others = Peers()
    assert others.live(0.0) == 1
    assert (others.heard("r2", 0.0), others.heard("r3", 0.0), others.heard("r2", 1.0)) == (True, True, False)
    assert others.live(3.0) == 3, "three beats are not over yet"
    assert others.live(GONE_S + 0.1) == 2
    assert others.heard("r3", 5.0), "it is a new one again"
    others.left("r3")
    others.left("nobody")
    assert others.live(GONE_S + 0.5) == 2


def test_who_could_not_be_heard_is_not_gone() -> None:
    others = Peers()
    others.heard("r2", 0.0)
    others.forgive(100.0)
    assert others.live(100.0 + GONE_S) == 2
    assert others.live(100.0 + GONE_S + 0.1) == 1


def test_memory_is_bounded() -> None:
    others = Peers()
    for n in range(peers.MAX_PEERS + 50):
        others.heard(f"r{n}", 0.0)
    assert others.live(0.0) == peers.MAX_PEERS + 1
