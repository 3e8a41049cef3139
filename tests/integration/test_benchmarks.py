"""The benchmarks that need several real processes still run against the product."""

from benchmarks import propagation


async def test_a_change_is_seen_at_every_router() -> None:
    figures = {one.name: one for one in await propagation.measure(changes=2, routers=2)}
    for kind in ("split change", "operator's rollback", "monitor's rollback"):
        assert figures[f"{kind}: in force on every router, p99"].median > 0
