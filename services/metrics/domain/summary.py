"""Totals of a variant as the API shows them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas import feedback
from schemas.sketch import quantile
from schemas.v1.common import ERRORS, Outcome
from schemas.v1.experiment import VariantSummary

THROUGHPUT_S = 60.0
"""`throughput_rps` looks back this far."""


@dataclass(slots=True)
class Totals:
    """Sums of one variant. Times in microseconds, cost in nano-dollars; ``recent`` finished lately."""

    admitted: int = 0
    done: int = 0
    overdue: int = 0
    overdue_done: int = 0
    fallback: int = 0
    outcomes: Mapping[str, int] = field(default_factory=dict)
    latency_n: int = 0
    latency_us: int = 0
    latency_bins: Mapping[int, int] = field(default_factory=dict)
    ttft_n: int = 0
    ttft_us: int = 0
    ttft_bins: Mapping[int, int] = field(default_factory=dict)
    itl_n: int = 0
    itl_us: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_nano: int = 0
    units: int = 0
    gpu_us: int = 0
    feedback: Mapping[str, int] = field(default_factory=dict)
    cached_tokens: int = 0
    digests: Mapping[str, int] = field(default_factory=dict)
    recent: int = 0


def summary(totals: Totals, recent_span_s: float) -> VariantSummary:
    """The shown totals; ``recent_span_s`` is how many seconds ``totals.recent`` covers.

    A quantile is that of the log-bin sketch, within about 1 %. ``success_rate`` and ``error_rate`` are percentages
    of ``request_count``, in which callers' own errors are not.
    """
    outcomes = {str(k): int(v) for k, v in totals.outcomes.items() if v}
    errors = sum(outcomes.get(outcome.value, 0) for outcome in ERRORS)
    cancels = outcomes.get(Outcome.CLIENT_CANCEL.value, 0)
    client_errors = outcomes.get(Outcome.CLIENT_ERROR.value, 0)
    done = totals.done
    successful = done - errors - cancels
    return VariantSummary(
        request_count=done,
        error_rate=100.0 * errors / done if done else 0.0,
        avg_latency_ms=_mean_ms(totals.latency_us, totals.latency_n),
        successful_requests=successful,
        error_count=errors,
        client_errors=client_errors,
        client_cancels=cancels,
        admitted=totals.admitted,
        in_flight=max(0, totals.admitted - done - client_errors),
        overdue=max(0, totals.overdue - totals.overdue_done),
        fallback_count=totals.fallback,
        success_rate=100.0 * successful / done if done else None,
        throughput_rps=totals.recent / recent_span_s if recent_span_s > 0 else 0.0,
        latency_p50_ms=_quantile_ms(totals.latency_bins, 0.50),
        latency_p95_ms=_quantile_ms(totals.latency_bins, 0.95),
        latency_p99_ms=_quantile_ms(totals.latency_bins, 0.99),
        avg_ttft_ms=_mean_ms(totals.ttft_us, totals.ttft_n),
        ttft_p50_ms=_quantile_ms(totals.ttft_bins, 0.50),
        ttft_p95_ms=_quantile_ms(totals.ttft_bins, 0.95),
        ttft_p99_ms=_quantile_ms(totals.ttft_bins, 0.99),
        avg_inter_token_ms=_mean_ms(totals.itl_us, totals.itl_n),
        prompt_tokens=totals.prompt_tokens,
        completion_tokens=totals.completion_tokens,
        cost=totals.cost_nano / 1e9,
        outcomes=outcomes,
        units=totals.units,
        cached_tokens=totals.cached_tokens,
        digests={digest: int(count) for digest, count in sorted(totals.digests.items()) if digest and count},
        **feedback.shown(totals.feedback),
        **feedback.efficiency(
            done=done, cost_nano=totals.cost_nano, completion_tokens=totals.completion_tokens, gpu_us=totals.gpu_us
        ),
    )


def _mean_ms(total_us: int, n: int) -> float | None:
    return total_us / n / 1000 if n else None


def _quantile_ms(bins: Mapping[int, int], q: float) -> float | None:
    value = quantile(bins, q)
    return None if value is None else value / 1000
