"""The dashboard of one test: both variants beside each other, what it decided on, and everything that happened."""

from typing import Any

from infra.grafana.parts import bars, board, choice, label, line, marks, numbers, rows

_ARM = "if(variant = 'a', 'stable', 'canary') AS arm"
_OF = "WHERE test_id = ${test:singlequote}"
_NAMED = f"${{__field.name}} {label('arm')}"
_CHANGES = """
SELECT at AS time, concat(change, if(reason = '', '', concat(': ', reason))) AS text, change AS tags
FROM test_changes WHERE $__timeFilter(at) AND test_id = ${test:singlequote} ORDER BY at LIMIT 500
"""
_ALARMS = """
SELECT at AS time, concat(title, ': ', message) AS text, level AS tags
FROM alerts WHERE $__timeFilter(at) AND test_id = ${test:singlequote} AND NOT resolved ORDER BY at LIMIT 500
"""
_EFFECT = """
SELECT at AS time,
    100 * (sum(errors_b) OVER far / nullIf(sum(n_b) OVER far, 0) - sum(errors_a) OVER far / nullIf(sum(n_a) OVER far, 0))
        AS "errors in points",
    100 * (sum(ms_b) OVER far / nullIf(sum(good_b) OVER far, 0)
        / nullIf(sum(ms_a) OVER far / nullIf(sum(good_a) OVER far, 0), 0) - 1) AS "mean latency in %"
FROM (
    SELECT at, sumIf(errors, variant = 'a') AS errors_a, sumIf(errors, variant = 'b') AS errors_b,
        sumIf(requests, variant = 'a') AS n_a, sumIf(requests, variant = 'b') AS n_b,
        sumIf(successful_requests, variant = 'a') AS good_a, sumIf(successful_requests, variant = 'b') AS good_b,
        sumIf(avg_latency_ms * successful_requests, variant = 'a') AS ms_a,
        sumIf(avg_latency_ms * successful_requests, variant = 'b') AS ms_b
    FROM variant_series(STEPS) WHERE test_id = ${test:singlequote} GROUP BY at
)
WINDOW far AS (ORDER BY at) ORDER BY at
"""


def _series(columns: str) -> str:
    return f"SELECT at AS time, {_ARM}, {columns} FROM variant_series(STEPS) {_OF} ORDER BY at"


def _arms(title: str, unit: str, columns: str, text: str = "") -> Any:
    """Both variants over time; of one column a series is called by its variant alone."""
    return line(title, unit, _series(columns), text, name=_NAMED if "," in columns else label("arm"))


def _quantiles(title: str, name: str, text: str) -> Any:
    wanted = ", ".join(f"{name}_p{p}_ms AS p{p}" for p in (50, 95, 99))
    return _arms(title, "ms", wanted, text)


def _outcomes(title: str, variant: str) -> Any:
    return line(
        title, "short",
        "SELECT at AS time, outcome, requests AS n FROM outcome_series(STEPS) "
        f"{_OF} AND variant = '{variant}' ORDER BY at",
        "Requests by how they ended.", name=label("outcome"), bars=True,
    )  # fmt: skip


def dashboard() -> Any:
    """The dashboard's builder."""
    return (
        board(
            "cypria-test", "Cypria: one test in depth", "Both variants of one test, and everything that happened to it.",
            "now-24h",
            [
                numbers(
                    "State",
                    "SELECT status, if(decision = '', 'none yet', decision) AS decision, model_a AS stable, model_b AS canary, "
                    f"traffic_split_percent AS split FROM tests {_OF}",
                    {"split": "percent"},
                ),
                rows(
                    "Why it ended",
                    "SELECT decision, rule, reason, value_a AS stable, value_b AS canary, value, bound, threshold, unit, "
                    'log_e AS "ln E", log_e_limit AS "ln E needed", exp(log_e) AS "E", n_a AS "requests stable", '
                    f'n_b AS "requests canary" FROM verdicts {_OF}',
                    text="The rule that decided: its value and bound against the threshold, and ln E against what it "
                    "had to reach. Empty while the test runs: the live page and `cypria status` show how far each guardrail is.",
                ),
                rows(
                    "Totals",
                    f'SELECT {_ARM}, requests, error_rate_percent AS errors, avg_latency_ms AS "mean latency", '
                    'latency_p95_ms AS "latency p95", ttft_p95_ms AS "first token p95", '
                    'avg_inter_token_ms AS "between tokens", cost_per_request_dollars AS "cost of a request", '
                    'tokens_per_gpu_second AS "tokens per GPU second", thumbs_up_percent AS "thumbs up", fallbacks, overdue, '
                    f"new_units AS units FROM variant_totals {_OF} ORDER BY variant",
                    {"errors": "percent", "mean latency": "ms", "latency p95": "ms", "first token p95": "ms",
                     "between tokens": "ms", "cost of a request": "currencyUSD", "thumbs up": "percent"},
                    "Of the whole test, whatever the time range.", span=16,
                ),
                bars(
                    "Outcomes, whole test", "percent",
                    "SELECT concat(if(variant = 'a', 'stable', 'canary'), ' ', outcome) AS name, percent "
                    f"FROM outcome_totals {_OF} ORDER BY variant, requests DESC",
                    "In percent of the variant's requests.",
                ),
                "Traffic and errors",
                _arms("Requests", "reqps", "requests_per_second AS requests"),
                line(
                    "Split", "percent",
                    "SELECT at AS time, 100 * sumIf(requests, variant = 'b') / nullIf(sum(requests), 0) AS measured, "
                    f"max(share_percent) AS configured FROM variant_series(STEPS) {_OF} GROUP BY at ORDER BY at",
                    "The canary's share of the requests, and what was configured.",
                ),
                _arms("Errors", "percent", "error_rate_percent AS errors", "In percent of the variant's requests."),
                _outcomes("Outcomes of the stable model", "a"),
                _outcomes("Outcomes of the canary", "b"),
                line(
                    "Effect so far", "short", _EFFECT,
                    "Canary against stable, all of the time range up to each moment: errors in percentage points, mean latency in "
                    "percent. Plain estimates: the confidence sequences and e-values that decide are on the live page and in the report.",
                ).min(None),
                "Speed",
                _quantiles("Latency", "latency", "Of whole replies, from a read request to its last byte."),
                _quantiles("Time to first token", "ttft", "Of streamed and unstreamed replies alike."),
                _quantiles("Time between tokens", "inter_token", "After the first token (TPOT)."),
                "Cost and answers of users",
                _arms("Cost of a request", "currencyUSD", "cost_per_request_dollars AS cost"),
                _arms("Tokens per GPU second", "short", "tokens_per_gpu_second AS tokens"),
                _arms("Thumbs up", "percent", "thumbs_up_percent AS thumbs", "In percent of all thumbs."),
                "What happened",
                rows(
                    "Changes",
                    "SELECT at AS time, change, status, traffic_split_percent AS split, actor, reason "
                    f"FROM test_changes {_OF} ORDER BY at, version",
                    {"split": "percent"}, span=12,
                ),
                rows(
                    "Alerts",
                    "SELECT at AS time, level, title, message, value, bound, threshold, resolved "
                    f"FROM alerts {_OF} ORDER BY at DESC LIMIT 100",
                    span=12,
                ),
            ],
        )
        .with_variable(
            choice(
                "test", "Test",
                "SELECT test_id, concat(test_id, ' (', status, ', ', model_b, ' against ', model_a, ')') AS text "
                "FROM tests ORDER BY last_event_at DESC LIMIT 500",
            )
        )
        .annotation(marks("State changes", "blue", _CHANGES))
        .annotation(marks("Alerts", "red", _ALARMS))
    )  # fmt: skip
