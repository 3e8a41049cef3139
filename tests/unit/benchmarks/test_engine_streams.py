"""How the two sides of a round are compared."""

from benchmarks.engine_streams import Seen, figures


def test_sides_are_compared_round_by_round() -> None:
    own = Seen(rates=[1000.0, 500.0, 800.0], cpu_us=[500.0, 900.0, 600.0], firsts_ms=[40.0, 90.0, 50.0])
    ours = Seen(rates=[960.0, 510.0, 760.0], cpu_us=[520.0, 880.0, 640.0], firsts_ms=[43.0, 91.0, 56.0])
    found = {one.name: one for one in figures("1M", own, ours)}
    share = found["1M: share of vLLM's own server"]
    assert share.values == (0.96, 1.02, 0.95)
    assert share.verdict() == "met"
    added = found["1M: added TTFT p50"]
    assert added.values == (3.0, 1.0, 6.0)
    assert (added.median, added.verdict()) == (3.0, "met")
    ours.rates = [rate * 0.9 for rate in ours.rates]
    assert {one.name: one for one in figures("1M", own, ours)}[share.name].verdict() == "MISSED"
