"""What the evaluator makes of arms that cannot be compared as they are: spent units, and more than one model."""

from schemas.v1.common import AlertLevel
from services.monitor.domain.alerts import alert_of
from services.monitor.domain.evaluator import TestEvaluator
from services.monitor.domain.evidence import Ticker
from tests.unit.monitor.synthetic import TEST, Arm, Traffic, experiment, stream
from tests.unit.monitor.test_evaluator import Messages, run


def test_a_canary_that_fares_no_worse_is_not_blamed_when_an_outage_has_used_up_the_others_units() -> None:
    def found(during_outage: Arm) -> TestEvaluator:
        traffic = Traffic(3, a=Arm(errors=0.0), b=Arm(errors=0.0), share_bp=4000, per_second=60, users=400)
        evaluator, ticker = TestEvaluator(experiment(share_bp=4000)), Ticker(TEST)
        run(evaluator, stream_of(traffic, during_outage), ticker)
        return evaluator

    def stream_of(traffic: Traffic, during_outage: Arm) -> Messages:
        yield from stream(traffic, 20)
        traffic.a = during_outage
        yield from stream(traffic, 60, 20)
        # Now all of A's units have failed once, if ever they do; B's are left to show what comes next.
        traffic.a, traffic.b = Arm(errors=0.0), Arm(errors=0.05)
        yield from stream(traffic, 40, 80)

    spent = found(Arm(errors=1.0))
    (check,) = [check for check in spent.checks if check.name == "error_rate_increase"]
    assert check.log_e() >= spent.limit(check), "the evidence alone would have sufficed"
    measure = check.measure(spent.limit(check))
    assert measure.value_a is not None
    assert measure.value_b is not None
    assert measure.value_b < measure.value_a
    assert spent.fired is None or spent.fired.rule != "error_rate_increase"
    healthy = found(Arm(errors=0.0))
    assert healthy.fired is not None


def test_an_arm_that_two_models_served_is_told_once_for_each() -> None:
    traffic, evaluator, ticker = Traffic(5), TestEvaluator(experiment()), Ticker(TEST)
    messages = list(stream(traffic, 30))
    for sequence, _, message in messages:
        for cell in message.cells:
            if cell.variant == "b":
                cell.digest = "sha256:b" if sequence < 20 else "sha256:other"
    half = len(messages) // 2
    found = run(evaluator, messages[:half], ticker)
    restored = TestEvaluator.from_dict(experiment(), evaluator.to_dict())
    found += run(restored, messages[half:], ticker)
    (mixed,) = [f for f in found if f.kind == "mixed_models"]
    assert (mixed.key, "(sha256:b, sha256:other)" in mixed.text) == ("mixed_models.mixed_models.b", True)
    alert = alert_of(restored.experiment, mixed, monitoring_active=True)
    assert (alert.level, alert.rule) == (AlertLevel.WARNING, "mixed_models.b")
    b = restored.totals.summaries()["b"]
    assert set(b.digests) == {"sha256:b", "sha256:other"}
    assert sum(b.digests.values()) == b.request_count
    assert set(restored.totals.summaries()["a"].digests) == {"sha256:a"}
