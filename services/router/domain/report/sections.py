"""What a report says, section by section, whatever it is rendered as: facts, tables and sentences, all plain text."""

from dataclasses import dataclass, field

from schemas.v1.common import Decision
from schemas.v1.experiment import Experiment, RampStep, SuccessCriteria, VariantSummary, VerdictRecord
from schemas.v1.query import GuardrailStatus
from schemas.v1.record import Report
from services.router.domain.report.figures import NONE, count, happening, moment, number, share, span, when, with_unit

DECISIONS = {
    Decision.PROMOTE_B: "Promote B",
    Decision.KEEP_A: "Keep A",
    Decision.ROLLBACK: "Rolled back",
    Decision.INCONCLUSIVE: "Inconclusive",
}


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, then facts (label, value), a table and sentences; each may be empty."""

    title: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)


def headline(report: Report) -> str:
    """The decision in words, or that there is none yet."""
    decision = report.result.decision
    return DECISIONS[decision] if decision is not None else f"No decision yet: {report.result.status.value}"


def reason(report: Report) -> str:
    """Why, or how the evidence stands."""
    return report.result.reason or (report.status.summary if report.status else "") or "no reason is known"


def subject(report: Report) -> str:
    """What was compared."""
    models = report.result.models
    return f"{models.get('variant_b', 'B')} (B) against {models.get('variant_a', 'A')} (A)"


def proof(report: Report) -> tuple[str, str, str]:
    """How a reader checks the decision: words, the command, which may be none, and words behind it."""
    verdict = report.result.verdict
    if verdict is None:
        return "There is no verdict yet that could be derived anew.", "", ""
    if verdict.tick is None:
        return f"This decision ({verdict.rule}) was not the statistics': there is nothing to derive anew.", "", ""
    return "Check it: ", f"cypria replay {report.test_id}", " derives the verdict anew from the stored evidence."


def sections(report: Report) -> list[Section]:
    """All sections that have something to say, in the order in which people ask."""
    found = [
        _verdict(report), _variants(report), _outcomes(report), _guardrails(report), _promotion(report),
        _timeline(report), _alerts(report), _configuration(report),
        Section("What could not be told", text=list(report.notes)),
    ]  # fmt: skip
    return [section for section in found if section.facts or section.rows or section.text]


def _verdict(report: Report) -> Section:
    verdict = report.result.verdict
    result = report.result
    facts = [
        ("Status", result.status.value.replace("_", " ")),
        ("Started", moment(result.start_time)),
        ("Ended", moment(result.end_time)),
        ("Split", f"{result.traffic_split_percent:g} %"),
    ]
    if verdict is not None:
        facts += _numbers(verdict, report)
    elif report.configuration is not None:
        facts += _identity(report.configuration.digests, report.configuration.config_hash)
    return Section("Decision", facts=facts)


def _numbers(verdict: VerdictRecord, report: Report) -> list[tuple[str, str]]:
    details = verdict.details
    unit = str(details.get("unit") or "")
    limit = details.get("limit")
    reached = f" (limit {number(limit)})" if isinstance(limit, float | int) else ""
    facts = [("Rule", verdict.rule), ("Decided at", when(verdict.at_ms))]
    if verdict.tick is not None:
        facts.append(("Tick", f"{verdict.tick} ({when(verdict.tick * 1000)})"))
    if verdict.tick is not None or verdict.value is not None:
        facts += [
            *_both_values(verdict, report),
            ("Value", _value(verdict, unit)),
            ("Bound", with_unit(verdict.bound, unit)),
            ("Threshold", with_unit(verdict.threshold, unit)),
            ("Evidence (ln E)", number(verdict.log_e, 6) + (reached if verdict.log_e is not None else "")),
            ("n of A", count(verdict.n_a)),
            ("n of B", count(verdict.n_b)),
        ]
    facts.append(("Split at the decision", share(verdict.split_bp)))
    facts += _identity(verdict.digests, verdict.config_hash)
    if (sequence := details.get("windows_seq")) is not None:
        facts.append(("Evidence up to WINDOWS sequence", str(sequence)))
    return facts


def _both_values(verdict: VerdictRecord, report: Report) -> list[tuple[str, str]]:
    values = [verdict.details.get(name) for name in ("value_a", "value_b")]
    if all(value is None for value in values):
        return []
    guardrails = report.status.guardrails if report.status else []
    unit = next((_unit(guardrail) for guardrail in guardrails if guardrail.name == verdict.rule), "")
    return [(f"Value of {arm}", with_unit(value, unit)) for arm, value in zip("AB", values, strict=True)]


def _value(verdict: VerdictRecord, unit: str) -> str:
    if verdict.value is None and verdict.details.get("value_a") == 0:
        return "without bound: A has none"
    return with_unit(verdict.value, unit)


def _identity(digests: dict[str, str], config_hash: str) -> list[tuple[str, str]]:
    known = [(f"Digest of {name.upper()}", digest or "the engine tells none") for name, digest in digests.items()]
    return [*sorted(known), ("Configuration hash", config_hash or NONE)]


_FIGURES: list[tuple[str, str, str]] = [
    ("Requests", "request_count", ""), ("Users and sessions", "units", ""), ("Errors", "error_count", ""),
    ("Error rate", "error_rate", "%"), ("Success rate", "success_rate", "%"), ("Callers' errors", "client_errors", ""),
    ("Hung up by callers", "client_cancels", ""), ("Served by A instead", "fallback_count", ""),
    ("Overdue", "overdue", ""), ("Throughput", "throughput_rps", "/s"),
    ("Mean latency", "avg_latency_ms", "ms"), ("Latency p50", "latency_p50_ms", "ms"),
    ("Latency p95", "latency_p95_ms", "ms"), ("Latency p99", "latency_p99_ms", "ms"),
    ("Mean time to first token", "avg_ttft_ms", "ms"), ("Time to first token p95", "ttft_p95_ms", "ms"),
    ("Mean inter-token time", "avg_inter_token_ms", "ms"), ("Prompt tokens", "prompt_tokens", ""),
    ("Cached prompt tokens", "cached_tokens", ""),
    ("Generated tokens", "completion_tokens", ""), ("Cost", "cost", ""),
    ("Cost per request", "cost_per_request", ""), ("GPU seconds", "gpu_seconds", ""),
    ("Tokens per GPU second", "tokens_per_gpu_second", ""), ("Thumbs up", "thumbs_up", ""),
    ("Thumbs down", "thumbs_down", ""), ("Satisfaction", "satisfaction_score", ""),
    ("Conversion rate", "conversion_rate", "%"),
]  # fmt: skip
_ALWAYS = {"request_count", "error_count", "error_rate"}


def _arms(report: Report) -> tuple[VariantSummary, VariantSummary]:
    metrics = report.result.metrics_summary
    return metrics.get("variant_a", VariantSummary()), metrics.get("variant_b", VariantSummary())


def _variants(report: Report) -> Section:
    a, b = _arms(report)
    rows = []
    for label, name, unit in _FIGURES:
        values = [getattr(arm, name, None) for arm in (a, b)]
        if name in _ALWAYS or any(values):
            rows.append([label, *(with_unit(value, unit) for value in values)])
    header = ["", "A (stable)", "B (canary)"]
    return Section("Variants", facts=_served(a, b), header=header, rows=rows, text=_mixed(a, b))


def _served(*arms: VariantSummary) -> list[tuple[str, str]]:
    """Which model answered, by what its worker said with each answer, and how often."""
    return [
        (f"{name} was served by", f"{digest} ({count(requests)} requests)")
        for name, arm in zip("AB", arms, strict=True)
        for digest, requests in sorted(arm.digests.items(), key=lambda item: -item[1])
    ]


def _mixed(*arms: VariantSummary) -> list[str]:
    return [
        f"{name} was served by {len(arm.digests)} different models: its figures are of none of them alone."
        for name, arm in zip("AB", arms, strict=True)
        if len(arm.digests) > 1
    ]


def _outcomes(report: Report) -> Section:
    a, b = (arm.outcomes for arm in _arms(report))
    rows = [[name, count(a.get(name, 0)), count(b.get(name, 0))] for name in sorted({*a, *b})]
    return Section("Outcomes", header=["Outcome", "A", "B"], rows=rows)


def _guardrails(report: Report) -> Section:
    if report.status is None:
        return Section("Guardrails")
    running = report.result.decision is None
    rows = [
        [
            guardrail.name,
            guardrail.action,
            with_unit(guardrail.value_a, _unit(guardrail)),
            with_unit(guardrail.value_b, _unit(guardrail)),
            _threshold(guardrail),
            number(guardrail.log_e, 3),
            number(guardrail.limit, 3),
            "fired" if guardrail.fired else "warned" if guardrail.warned else "holds",
            *([_needs(guardrail.needs_requests)] if running else []),
        ]
        for guardrail in report.status.guardrails
    ]
    header = ["Guardrail", "Action", "A", "B", "Threshold", "ln E", "Limit", "State", *(["Needs"] if running else [])]
    return Section("Guardrails", header=header, rows=rows)


def _unit(guardrail: GuardrailStatus) -> str:
    """Of the arms' figures; a monitor that is older than that field knows milliseconds and percent."""
    slow = any(word in guardrail.name for word in ("latency", "ttft", "inter_token"))
    return guardrail.unit or ("ms" if slow else "%")


def _threshold(guardrail: GuardrailStatus) -> str:
    relative = "increase" in guardrail.name or "degradation" in guardrail.name
    value = with_unit(guardrail.threshold, "%" if relative else _unit(guardrail))
    return f"+{value}" if relative and value != NONE else value


def _needs(requests: int | None, *, at_least: bool = False) -> str:
    return f"{'at least' if at_least else 'about'} {count(requests)} requests" if requests else NONE


def _promotion(report: Report) -> Section:
    conditions = report.status.promotion.get("conditions", []) if report.status else []
    waits = report.result.decision is not Decision.ROLLBACK
    rows = [
        [
            str(condition.get("name", "")).replace("_", " "),
            "yes" if condition.get("met") else "no",
            str(condition.get("text", "")),
            number(condition.get("log_e"), 3),
            number(condition.get("limit"), 3),
            *([_needs(condition.get("needs_requests"), at_least=bool(condition.get("at_least")))] if waits else []),
        ]
        for condition in conditions
    ]
    header = ["Condition", "Met", "", "ln E", "Limit", *(["Needs"] if waits else [])]
    return Section("Promotion", header=header, rows=rows)


def _timeline(report: Report) -> Section:
    rows = [
        [
            when(change.at_ms),
            happening(change.kind),
            share(change.share_bp),
            change.actor or NONE,
            change.reason or change.rule or "",
        ]
        for change in report.changes
    ]
    return Section("Timeline", header=["Time", "Event", "Split", "By", "Reason"], rows=rows)


def _alerts(report: Report) -> Section:
    rows = [
        [
            moment(str(alert["time"])) if alert.get("time") else when(alert.get("at_ms")),
            str(alert.get("level", NONE)),
            str(alert.get("title", "")),
            str(alert.get("message", "")),
        ]
        for alert in reversed(report.alerts)
    ]
    return Section("Alerts", header=["Time", "Level", "Title", "Message"], rows=rows)


def _rollout(test: Experiment) -> list[tuple[str, str]]:
    """What the operator asked of the way up and down; what is not asked for is not told."""
    facts = [("Kind of change", test.change_type.replace("_", " ")), ("Preset", test.preset)]
    if test.min_duration_minutes:
        facts.append(("Nothing promoted before", span(test.min_duration_minutes * 60)))
    if test.ramp is not None:
        facts += [(f"Ramp step {index}", _step(step)) for index, step in enumerate(test.ramp.steps, 1)]
    if any(guardrail.action == "step_down" for guardrail in test.guardrails):
        retries = f"{test.retry.max_retries}, the first after {span(test.retry.backoff_minutes * 60)}"
        facts.append(("Retries after a step down", retries))
    facts += [
        (f"Guardrail {g.metric.replace('_', ' ')}", f"+{g.margin_percent:g} %, then {g.action.replace('_', ' ')}")
        for g in test.guardrails
    ]
    return [(label, value) for label, value in facts if value]


def _step(step: RampStep) -> str:
    soak = f"{share(step.share_bp)} for at least {span(step.soak_minutes * 60)}"
    return f"{soak} and {count(step.min_requests)} requests, gate {step.gate}"


def _negligible(success: SuccessCriteria) -> list[tuple[str, str]]:
    percent = success.negligible_error_rate_percent
    return [("Negligible error rate", f"{percent:g} %")] if percent else []


def _configuration(report: Report) -> Section:
    test = report.configuration
    if test is None:
        return Section("Configuration")
    success, failure, limits = test.success_criteria, test.failure_criteria, test.thresholds
    facts = [
        ("Duration", span(test.duration_minutes * 60)),
        *_rollout(test),
        ("Primary metric", f"{test.primary_metric}, better by {success.min_improvement_threshold:g} %"),
        ("Smallest sample", f"{count(success.min_sample_size)} requests of each variant"),
        ("Margin of errors", f"{success.max_error_rate_increase_percent:g} %"),
        *_negligible(success),
        ("Margin of latency", f"{success.max_latency_increase_percent:g} %"),
        ("Errors at most", f"{failure.max_error_rate_percent:g} %"),
        ("Errors: warning, critical", f"{limits.warning_error_rate:g} %, {limits.critical_error_rate:g} %"),
        ("Mean latency at most", f"{failure.max_latency_ms:g} ms"),
        ("Latency: warning, critical", f"{limits.warning_latency_ms:g} ms, {limits.critical_latency_ms:g} ms"),
        ("Family level of rollbacks", f"{test.alpha:g}"),
        ("Automatic rollback", "on" if test.auto_rollback else "off"),
        ("Checked every", span(test.check_interval_seconds)),
    ]  # fmt: skip
    facts += [(f"Policy {name}", str(value)) for name, value in sorted(test.policies.items())]
    facts += [(f"Tag {name}", value) for name, value in sorted(test.tags.items())]
    return Section("Configuration", facts=facts)
