"""Hypothesis strategies shared by the tests of the statistics."""

from hypothesis import strategies as st

shares = st.one_of(st.sampled_from([0.0, 1.0, 0.5, 0.1, 0.01, 0.9999]), st.floats(0.0, 1.0))
counts = st.one_of(st.integers(0, 5), st.integers(0, 10**12))
rate_rows = st.lists(st.tuples(shares, counts, counts), max_size=4)
histograms = st.dictionaries(st.integers(-300, 900), st.integers(0, 10**6), max_size=6)
histogram_rows = st.lists(st.tuples(shares, histograms, histograms), max_size=3)


def ticks_of(rows: st.SearchStrategy) -> st.SearchStrategy:
    """Streams of (non-decreasing tick, rows)."""
    steps = st.lists(st.tuples(st.integers(0, 20), rows), min_size=1, max_size=12)

    def accumulate(pairs):
        tick, stream = 0, []
        for gap, tick_rows in pairs:
            tick += gap
            stream.append((tick, tick_rows))
        return stream

    return steps.map(accumulate)
