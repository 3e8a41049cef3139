"""The statistics of a verdict: anytime-valid evidence from additive sufficient statistics.

Pure code: no clock, no I/O, no randomness. Everything may be looked at after every tick. All evidence is
``ln E``; a rule fires at ``log_e() >= log_threshold(alpha, guardrails, weight)``. Formulas and measured
error rates: ``docs/statistics.md``.

Evidence that is fed tick by tick. Each has ``update(tick, ...)``, ``log_e()``, ``to_dict()``,
``from_dict()`` (a class method; JSON keeps every bit), and, where units count afresh in epochs,
``start_epoch(steps)`` and ``paths()`` (for ``requests_needed``). ``tick`` is the broker's whole second
minus the second its epoch began; it may repeat, but not go back. Rows are one for each phase (constant
``pi``, B's share); their order within a tick never matters. ``pi`` of 0 or 1 and rows without
events leave E untouched. For the first epoch pass ``steps=plan.steps``.

========================================  =============================================================
``RateEProcess(rho0, grid, w0, steps)``   rows ``(pi, events_a, events_b)``: errors, timeouts, overdue
``RateEProcess.non_inferiority(rho0)``    the reverse, for promotion; whole-test counts, no epochs
``ErrorNonInferiority(rho0, p0)``         that, or B's rate is negligible; rows and ``Arrivals`` of B
``FewerErrors()``                         the same rows and arrivals; ``process(ratio)`` is Core A reversed
``LatencyEvidence(margin, w0, steps)``    rows ``(pi, hist_a, hist_b)``: latency, TTFT, TPOT, cost
``MannWhitney``, ``TailExceedance``       its three parts, alone
``SampleRatio(alpha)``                    rows ``(pi, new_units_a, new_units_b)``; ``mismatch()``
``AbsoluteRate(limit, w0, steps)``        ``update(tick, events, trials)`` of one arm
========================================  =============================================================

Evidence from totals, computed when asked:

========================================  =============================================================
``MeanSums(n, total, squares)``           ``log_e_above(limit)``, ``lower_bound(limit, alpha)``
``bucket_effect(counts, sums, ratio)``    B - ratio*A by unit buckets within phases: ``BucketEffect``
``mixture_log_e``, ``half_width``         Core C on (D, V); two-sided interval is D +- half-width
``reduction_log_e``                       promotion: latency or cost lower by a threshold
``non_inferiority_log_e``                 promotion: latency not worse than a margin
``proportion_improvement_log_e``          promotion: proportion better by a threshold (plain requests)
``quantile_interval``                     p50, p95, p99 with bounds, for display
``histogram_quantile``                    the point estimate alone
``requests_needed``                       "about N more requests" for anything with ``paths()``
``requests_needed_for_mean``              the same for Core C
========================================  =============================================================

Levels and epochs: ``EpochPlan(duration_seconds)`` with ``count``, ``index(second)``, ``tick(second)``,
``start(index)``, ``steps``, ``weight(index)``; ``log_threshold(alpha, guardrails, weight)``;
``anytime_p_value(max_log_e)``. Bins: ``bin_index``, ``bin_value``, ``GAMMA``. ``observed_share(n_a, n_b)``
serves as ``pi`` of a window whose configured split cannot be trusted.

A window's life: ``epoch = plan.index(second)``; if it is a new one, ``start_epoch(plan.steps)`` on every
process; then ``update(plan.tick(second), rows)``; then compare ``log_e()`` with
``log_threshold(alpha, guardrails, plan.weight(epoch))``.
"""

from services.monitor.domain.statistics.absolute import AbsoluteRate, MeanSums
from services.monitor.domain.statistics.buckets import BUCKETS, BucketEffect, bucket_effect
from services.monitor.domain.statistics.epochs import EpochPlan, anytime_p_value, log_threshold
from services.monitor.domain.statistics.fewer_errors import FewerErrors
from services.monitor.domain.statistics.histogram import (
    GAMMA,
    Histogram,
    HistogramRow,
    RateRow,
    State,
    bin_index,
    bin_value,
    merge_histograms,
)
from services.monitor.domain.statistics.latency import LatencyEvidence
from services.monitor.domain.statistics.mann_whitney import MannWhitney
from services.monitor.domain.statistics.mixture import (
    half_width,
    lower_bound,
    mixture_log_e,
    non_inferiority_log_e,
    proportion_difference,
    proportion_improvement_log_e,
    reduction_log_e,
)
from services.monitor.domain.statistics.non_inferiority import Arrivals, ErrorNonInferiority
from services.monitor.domain.statistics.planning import requests_needed, requests_needed_for_mean
from services.monitor.domain.statistics.quantiles import (
    QuantileInterval,
    histogram_quantile,
    quantile_interval,
)
from services.monitor.domain.statistics.rate import RateEProcess, observed_share
from services.monitor.domain.statistics.srm import SRM_ALPHA, SampleRatio
from services.monitor.domain.statistics.tails import P95, P99, TailExceedance, TailLevel

__all__ = [
    "BUCKETS",
    "GAMMA",
    "P95",
    "P99",
    "SRM_ALPHA",
    "AbsoluteRate",
    "Arrivals",
    "BucketEffect",
    "EpochPlan",
    "ErrorNonInferiority",
    "FewerErrors",
    "Histogram",
    "HistogramRow",
    "LatencyEvidence",
    "MannWhitney",
    "MeanSums",
    "QuantileInterval",
    "RateEProcess",
    "RateRow",
    "SampleRatio",
    "State",
    "TailExceedance",
    "TailLevel",
    "anytime_p_value",
    "bin_index",
    "bin_value",
    "bucket_effect",
    "half_width",
    "histogram_quantile",
    "log_threshold",
    "lower_bound",
    "merge_histograms",
    "mixture_log_e",
    "non_inferiority_log_e",
    "observed_share",
    "proportion_difference",
    "proportion_improvement_log_e",
    "quantile_interval",
    "reduction_log_e",
    "requests_needed",
    "requests_needed_for_mean",
]
