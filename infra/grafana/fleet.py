"""The dashboard of all tests at once: what runs, is it safe, what happened."""

from typing import Any

from infra.grafana.parts import board, label, line, marks, numbers, rows, states

CHANGES = """
SELECT at AS time, concat(test_id, ': ', change, if(reason = '', '', concat(': ', reason))) AS text,
    change AS tags
FROM test_changes WHERE $__timeFilter(at) ORDER BY at DESC LIMIT 500
"""
ALARMS = """
SELECT at AS time, concat(title, ': ', message) AS text, level AS tags
FROM alerts WHERE $__timeFilter(at) AND level IN ('CRITICAL', 'EMERGENCY') AND NOT resolved ORDER BY at DESC LIMIT 500
"""
_TESTS = """
SELECT known.test_id AS test, any(status) AS status, any(decision) AS decision, any(model_a) AS stable,
    any(model_b) AS canary, any(traffic_split_percent) AS split,
    sumIf(figures.requests, variant = 'a') AS "requests stable", sumIf(figures.requests, variant = 'b') AS "requests canary",
    anyIf(error_rate_percent, variant = 'a') AS "errors stable", anyIf(error_rate_percent, variant = 'b') AS "errors canary",
    anyIf(avg_latency_ms, variant = 'a') AS "latency stable", anyIf(avg_latency_ms, variant = 'b') AS "latency canary",
    sum(cost_dollars) AS cost, any(known.reason) AS reason
FROM tests AS known LEFT JOIN (
    SELECT * FROM variant_totals WHERE test_id IN (
        SELECT test_id FROM tests
        WHERE status IN ('scheduled', 'running', 'paused', 'rolling_back') OR $__timeFilter(last_event_at)
    )
) AS figures ON figures.test_id = known.test_id
WHERE known.status IN ('scheduled', 'running', 'paused', 'rolling_back') OR $__timeFilter(known.last_event_at)
GROUP BY test ORDER BY any(last_event_at) DESC LIMIT 100
"""
_STATES = """
SELECT time, test_id, status FROM (
    SELECT toDateTime64($__fromTime, 3, 'UTC') AS time, test_id, argMax(test_changes.status, version) AS status
    FROM test_changes WHERE at < $__fromTime GROUP BY test_id
    HAVING status IN ('scheduled', 'running', 'paused', 'rolling_back')
    UNION ALL
    SELECT at AS time, test_id, status FROM test_changes WHERE $__timeFilter(at)
) ORDER BY time
"""


def dashboard() -> Any:
    """The dashboard's builder."""
    return (
        board(
            "cypria-fleet", "Cypria: fleet overview", "What is running, is it safe, what happened.", "now-6h",
            [
                numbers(
                    "Live and ended",
                    "SELECT countIf(status IN ('scheduled', 'running', 'paused', 'rolling_back')) AS live, "
                    "countIf(status = 'rolled_back' AND $__timeFilter(last_event_at)) AS \"rolled back\", "
                    "countIf(status = 'completed' AND $__timeFilter(last_event_at)) AS completed, "
                    "countIf(status = 'failed' AND $__timeFilter(last_event_at)) AS failed FROM tests",
                    {}, "Live tests now, and those that ended within the time range.", span=12,
                ),
                numbers(
                    "Requests in tests",
                    "SELECT sum(s.requests) AS requests, 100 * sum(s.errors) / nullIf(sum(s.requests), 0) AS errors, "
                    "sum(s.cost_dollars) AS cost FROM variant_series(STEPS) AS s",
                    {"errors": "percent", "cost": "currencyUSD", "requests": "short"},
                    "All tests and both variants, within the time range.", span=12,
                ),
                rows(
                    "Tests", _TESTS,
                    {"split": "percent", "errors stable": "percent", "errors canary": "percent", "latency stable": "ms",
                     "latency canary": "ms", "cost": "currencyUSD"},
                    "Live tests, and those that ended within the time range; figures are of each whole test.",
                ),
                states("States", _STATES, "The state of each test over time.", span=16),
                line(
                    "Outcomes other than ok", "short",
                    "SELECT at AS time, outcome, sum(requests) AS n FROM outcome_series(STEPS) "
                    "WHERE outcome != 'ok' GROUP BY at, outcome ORDER BY at",
                    "Requests by how they ended, of all tests.", name=label("outcome"), bars=True,
                ),
                line(
                    "Requests by test", "reqps",
                    "SELECT at AS time, test_id, sum(requests_per_second) AS requests FROM variant_series(STEPS) "
                    "GROUP BY at, test_id ORDER BY at",
                    name=label("test_id"),
                ),
                line(
                    "Errors of the canary", "percent",
                    "SELECT at AS time, test_id, any(error_rate_percent) AS errors FROM variant_series(STEPS) "
                    "WHERE variant = 'b' GROUP BY at, test_id ORDER BY at",
                    "Errors in percent of the canary's requests, by test.", name=label("test_id"),
                ),
                line(
                    "Mean latency, canary against stable", "percent",
                    "SELECT at AS time, test_id, 100 * anyIf(avg_latency_ms, variant = 'b') "
                    "/ anyIf(avg_latency_ms, variant = 'a') AS ratio FROM variant_series(STEPS) "
                    "GROUP BY at, test_id ORDER BY at",
                    "100 % is as fast as the stable model.", name=label("test_id"),
                ),
                line(
                    "Cost by test", "currencyUSD",
                    "SELECT at AS time, test_id, sum(cost_dollars) * 3600 / $__interval_s AS cost "
                    "FROM variant_series(STEPS) GROUP BY at, test_id ORDER BY at",
                    "Dollars per hour, both variants.", name=label("test_id"),
                ),
                rows(
                    "Alerts",
                    "SELECT at AS time, level, title, test_id AS test, message, resolved FROM alerts "
                    "WHERE $__timeFilter(at) ORDER BY at DESC LIMIT 100",
                    span=16,
                ),
            ],
        )
        .annotation(marks("State changes", "blue", CHANGES))
        .annotation(marks("Critical alerts", "red", ALARMS))
    )  # fmt: skip
