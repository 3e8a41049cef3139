"""The dashboard of Cypria's own health: from a router's facts to rows in ClickHouse and verdicts."""

from typing import Any

from infra.grafana.fleet import ALARMS
from infra.grafana.parts import board, label, line, marks, rows, watched

_P95 = "histogram_quantile(0.95, sum by (le) (rate(cypria_metrics_insert_seconds_bucket[5m])))"


def dashboard() -> Any:
    """The dashboard's builder."""
    return (
        board(
            "cypria-pipeline", "Cypria: pipeline health", "From a router's facts to rows in ClickHouse and verdicts.",
            "now-6h",
            [
                rows(
                    "How far the tables are",
                    'SELECT stream, max(sequence) AS sequence, max(at) AS "last message", '
                    "dateDiff('second', max(at), now()) AS age FROM pipeline_positions GROUP BY stream ORDER BY stream",
                    {"age": "s"},
                    "The last message of each stream whose content is in ClickHouse. Streams of events and alerts are quiet for long.",
                    span=12,
                ),
                rows(
                    "Refused calls",
                    "SELECT at AS time, actor, role, action, target, status, outcome FROM audit_log "
                    "WHERE $__timeFilter(at) AND status >= 400 ORDER BY at DESC LIMIT 100",
                    span=12,
                ),
                line(
                    "Requests counted", "reqps",
                    "SELECT at AS time, sum(requests_per_second) AS requests FROM variant_series(STEPS) GROUP BY at ORDER BY at",
                    "What the tables have, of all tests: a hole is a gap in the pipeline or in the traffic.",
                ),
                line(
                    "Control calls", "short",
                    "SELECT $__timeInterval(at) AS time, outcome, count() AS calls FROM audit_log "
                    "WHERE $__timeFilter(at) GROUP BY time, outcome ORDER BY time",
                    "Audit records by outcome.", name=label("outcome"), bars=True,
                ),
                line(
                    "Alerts", "short",
                    "SELECT $__timeInterval(at) AS time, level, count() AS alerts FROM alerts "
                    "WHERE $__timeFilter(at) GROUP BY time, level ORDER BY time",
                    "Alerts by level.", name=label("level"), bars=True,
                ),
                "Services",
                watched("Processes that answer", "short", {"{{service}}": 'sum by (service) (up{job="cypria"})'}),
                watched("Requests at the edge", "reqps", {"{{status}}": "sum by (status) (rate(cypria_router_requests_total[5m]))"}),
                watched("Refused at the edge", "reqps", {"{{status}}": "sum by (status) (rate(cypria_router_refused_total[5m]))"}),
                "Facts",
                watched("Facts folded", "short", {"facts": "sum(rate(cypria_metrics_facts_total[5m]))"}, "Facts per second."),
                watched(
                    "Facts that wait or are lost", "short",
                    {"batches waiting": "sum(cypria_router_fact_batches_waiting)", "dropped": "sum(cypria_router_facts_dropped)",
                     "missing batches": "sum(cypria_metrics_missing_batches_total)"},
                    "Batches that wait for the bus, facts dropped because the spool was full, batches that never came.",
                ),
                watched("Spool", "bytes", {"bytes": "sum(cypria_router_spool_bytes)"}, "Facts on the routers' disks."),
                "Tables and verdicts",
                watched("Age of the last window that the monitor read", "s", {"{{instance}}": "cypria_monitor_lag_seconds"}),
                watched("Insert into ClickHouse, p95", "s", {"p95": _P95}),
                watched("Inserts tried again", "short", {"{{why}}": "sum by (why) (increase(cypria_metrics_insert_retries_total[5m]))"}),
                watched(
                    "Dead letters", "short",
                    {"metrics {{stream}}": "sum by (stream) (increase(cypria_metrics_dead_letters_total[1h]))",
                     "alerts {{stream}}": "sum by (stream) (increase(cypria_alerts_dead_letters_total[1h]))"},
                    "Messages that could not be read, within an hour.",
                ),
                watched("Checks that failed", "short", {"{{check}}": "sum by (check) (increase(cypria_monitor_failed_checks_total[1h]))"}),
                watched(
                    "Deliveries of alerts", "short",
                    {"{{destination}} {{outcome}}": "sum by (destination, outcome) (increase(cypria_alerts_deliveries_total[1h]))"},
                ),
            ],
        )
        .annotation(marks("Critical alerts", "red", ALARMS))
    )  # fmt: skip
