"""What an entry keeps of old tests: all that runs or is young, nothing that is neither."""

from hypothesis import given
from hypothesis import strategies as st

from schemas.v1.common import LIVE, TestStatus, rfc3339, unix_ms
from schemas.v1.experiment import Experiment, OutboxEvent, TestResult
from services.router.domain.retention import kept

NOW = 1_800_000_000_000
times = st.integers(NOW - 2_000_000, NOW)


@st.composite
def entries(draw: st.DrawFn) -> Experiment:
    status = draw(st.sampled_from(list(TestStatus)))
    recent = [
        TestResult(test_id=f"t{n}", status=TestStatus.COMPLETED, end_time=rfc3339(at))
        for n, at in enumerate(draw(st.lists(times, max_size=4)))
    ]
    outbox = [OutboxEvent(id="t.1.1", subject="s", type="t", at_ms=1, data={})] if draw(st.booleans()) else []
    return Experiment(
        test_id="t", status=status, model_a="a", model_b="b", share_bp=0, salt="s", created_ms=draw(times),
        ended_ms=None if status in LIVE else draw(times), duration_minutes=1, recent=recent, outbox=outbox,
    )  # fmt: skip


@given(times)
def test_a_time_is_read_back_to_the_millisecond(at: int) -> None:
    assert unix_ms(rfc3339(at)) == at


@given(entries(), st.integers(0, 2_000_000))
def test_only_what_ended_long_enough_ago_goes(entry: Experiment, retention_ms: int) -> None:
    left = kept(entry, NOW, retention_ms)
    old = entry.ended_ms is not None and entry.ended_ms <= NOW - retention_ms
    assert (left is None) == (old and not entry.outbox)
    if left is None:
        return
    young = [result for result in entry.recent if unix_ms(str(result.end_time)) > NOW - retention_ms]
    assert left.recent == young
    assert (left is entry) == (young == entry.recent)
    assert left.model_copy(update={"recent": []}) == entry.model_copy(update={"recent": []})
    assert kept(left, NOW, retention_ms) is left
