"""Prometheus' rules: each alert fires on what it is about and on nothing else, by promtool; and somebody is told what to do.

Series are in promtool's notation: `0+6x30` grows by 6 at each of 30 minutes.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.metrics_reference import SERVICES, described
from tests.system import ROOT

FOLDER = ROOT / "infra" / "prometheus"
FILES = sorted(FOLDER.glob("*.rules.yml"))
RULES: list[dict[str, Any]] = [
    rule for file in FILES for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}

OK, BAD = 'cypria_router_requests_total{status="200"}', 'cypria_router_requests_total{status="503"}'
LEFT = 'cypria_router_requests_total{status="499"}'
READY = {f"cypria_{service}_ready": "1+0x45" for service in SERVICES}
BUCKETS = "cypria_inference_queue_seconds_bucket"
STATE = "cypria_inference_model_state"
DELIVERED, TOLD = "cypria_alerts_deliveries_total", "cypria_alerts_integration_calls_total"

CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "ErrorBudgetBurnsFast": ({OK: "0+980x45", BAD: "0+20x45"}, {OK: "0+990x45", BAD: "0+10x45", LEFT: "0+500x45"}),
    "ErrorBudgetBurnsSlowly": ({OK: "0+990x45", BAD: "0+10x45"}, {OK: "0+998x45", BAD: "0+2x45"}),
    "ServiceAbsent": ({**READY, "cypria_monitor_ready": "1+0x10 stale"}, READY),
    "TargetDown": ({'up{job="cypria"}': "0x45"}, {'up{job="cypria"}': "1x45", 'up{job="pushgateway"}': "0x45"}),
    "RouterNotReady": ({"cypria_router_ready": "0x45"}, {"cypria_router_ready": "1x45", "cypria_monitor_ready": "0x45"}),
    "ServiceNotReady": ({"cypria_metrics_ready": "0x45"}, {"cypria_metrics_ready": "1x45", "cypria_router_ready": "0x45"}),
    "TestUnwatched": ({"cypria_router_unwatched_tests": "1x45"}, {"cypria_router_unwatched_tests": "0x45"}),
    "MonitorBehind": (
        {"cypria_monitor_lag_seconds": "40x45", "cypria_monitor_tests": "1x45"},
        # of two monitors one keeps up; and what is old while nothing runs is nobody's loss
        {'cypria_monitor_lag_seconds{instance="a"}': "40x45", 'cypria_monitor_lag_seconds{instance="b"}': "1x45",
         "cypria_monitor_tests": "1x45"},
    ),
    "CheckFails": (
        {'cypria_monitor_failed_checks_total{check="ttft"}': "0+1x45"}, {'cypria_monitor_failed_checks_total{check="ttft"}': "7x45"},
    ),
    "BreakerOpen": ({"cypria_router_open_breakers": "1x45"}, {"cypria_router_open_breakers": "0x45"}),
    "NoWorkers": ({"cypria_router_workers": "0x45"}, {"cypria_router_workers": "2x45"}),
    "ModelUnserved": (
        {'cypria_router_ready_workers{model="m"}': "1x35 0x10"},
        {'cypria_router_ready_workers{model="m"}': "1x35 0x10", STATE + '{model="m",state="unloaded"}': "0x35 1x10",
         'cypria_router_ready_workers{model="never"}': "0x45"},
    ),
    "ModelFailed": (
        {STATE + '{model="m",state="failed"}': "1x45"},
        {STATE + '{model="m",state="failed"}': "0x45", STATE + '{model="m",state="unloaded"}': "1x45"},
    ),
    "EngineRestarts": (
        {'cypria_inference_engine_restarts_total{model="m"}': "0+1x45"},
        {'cypria_inference_engine_restarts_total{model="m"}': "0x38 1x2"},
    ),
    "RequestsQueue": (
        {BUCKETS + '{model="m",le="5"}': "0+1x45", BUCKETS + '{model="m",le="10"}': "0+60x45", BUCKETS + '{model="m",le="+Inf"}': "0+60x45"},
        {BUCKETS + '{model="m",le="5"}': "0+60x45", BUCKETS + '{model="m",le="10"}': "0+60x45", BUCKETS + '{model="m",le="+Inf"}': "0+60x45"},
    ),
    "DeadLetters": (
        {'cypria_alerts_dead_letters_total{stream="ALERTS"}': "0x35 1x10"},
        {f'cypria_{service}_dead_letters_total{{stream="EVENTS"}}': "3x45" for service in SERVICES},
    ),
    "FactsWaiting": ({"cypria_router_fact_batches_waiting": "500x45"}, {"cypria_router_fact_batches_waiting": "20x45"}),
    "FactsDropped": ({"cypria_router_facts_dropped_total": "0x35 9x10"}, {"cypria_router_facts_dropped_total": "9x45"}),
    "BatchesMissing": ({"cypria_metrics_missing_batches_total": "0x35 1x10"}, {"cypria_metrics_missing_batches_total": "1x45"}),
    "PartitionUnwritten": (
        {'cypria_metrics_partition_writing{partition="0",instance="a"}': "0x45"},
        {'cypria_metrics_partition_writing{partition="0",instance="a"}': "0x45", 'cypria_metrics_partition_writing{partition="0",instance="b"}': "1x45"},
    ),
    "ClickHouseRefuses": (
        {'cypria_metrics_insert_retries_total{why="insert"}': "0+6x45"}, {'cypria_metrics_insert_retries_total{why="insert"}': "0x20 6x20"},
    ),
    "AlertChannelFails": (
        {DELIVERED + '{destination="slack",outcome="retry"}': "0+1x45", DELIVERED + '{destination="mail",outcome="sent"}': "0+1x45"},
        {DELIVERED + '{destination="slack",outcome="retry"}': "0+1x45", DELIVERED + '{destination="slack",outcome="sent"}': "0+1x45",
         DELIVERED + '{destination="mail",outcome="suppressed"}': "0+5x45"},
    ),
    "IntegrationFails": (
        {TOLD + '{integration="aar",outcome="retry"}': "0+1x45"},
        {TOLD + '{integration="aar",outcome="retry"}': "0+1x45", TOLD + '{integration="aar",outcome="sent"}': "0+1x45"},
    ),
    "KeysExpire": ({"cypria_router_keys_expiring": "1x45"}, {"cypria_router_keys_expiring": "0x45"}),
    "KeyGuessing": ({"cypria_router_guessing_sources": "1x45"}, {"cypria_router_guessing_sources": "0x45"}),
    "AuditChainBroken": (
        {'cypria_metrics_audit_touched{instance="a"}': "0x35 1x10", 'cypria_metrics_audit_touched{instance="b"}': "0x45"},
        {"cypria_metrics_audit_touched": "0x45"},
    ),
    "AuditChainBroken when somebody asked": (
        {'cypria_metrics_audit_checks_total{result="broken"}': "0x35 1x10"},
        {'cypria_metrics_audit_checks_total{result="broken"}': "0x45", 'cypria_metrics_audit_checks_total{result="whole"}': "0+1x45"},
    ),
    # promtool's clock begins at 0
    "AuditUnchecked": (
        {'cypria_metrics_audit_checked_timestamp_seconds{what="all"}': f"{-3 * 86_400}x45",
         'cypria_metrics_audit_checked_timestamp_seconds{what="new"}': "0x45"},
        {'cypria_metrics_audit_checked_timestamp_seconds{what="all",instance="a"}': f"{-3 * 86_400}x45",
         'cypria_metrics_audit_checked_timestamp_seconds{what="all",instance="b"}': "0x45"},
    ),
    "AuditRecordsLost": ({"cypria_router_audit_dropped_total": "0x35 1x10"}, {"cypria_router_audit_dropped_total": "1x45"}),
    "CertificateExpires": (
        {'cypria_router_certificate_expiry_timestamp_seconds{setting="http.tls"}': f"{13 * 86_400}x45"},
        {'cypria_router_certificate_expiry_timestamp_seconds{setting="http.tls"}': f"{15 * 86_400}x45"},
    ),
}  # fmt: skip
"""Of each alert, by the first word, series on which it fires and series on which it does not; and see `READY`."""


def expected(alert: str, *, fires: bool) -> dict[str, Any]:
    """promtool's question whether the alert fires, and the answer that there should be."""
    firing = f'count(ALERTS{{alertname="Cypria{alert.split(maxsplit=1)[0]}", alertstate="firing"}}) > bool 0'
    return {"expr": firing, "eval_time": "41m", "exp_samples": [{"labels": "{}", "value": 1}] if fires else []}


def packs() -> list[dict[str, Any]]:
    """promtool's tests of all cases; those that share no metric share a test, since each costs a second."""
    packed: list[tuple[set[str], dict[str, str], list[dict[str, Any]]]] = []
    for alert, both in CASES.items():
        for series, fires in zip(both, (True, False), strict=True):
            names = {name.partition("{")[0] for name in series}
            pack = next((one for one in packed if not one[0] & names), None)
            if pack is None:
                packed.append(pack := (set(), {}, []))
            pack[0].update(names)
            pack[1].update(series)
            pack[2].append(expected(alert, fires=fires))
    return [
        {"interval": "1m", "promql_expr_test": asked,
         "input_series": [{"series": name, "values": values} for name, values in series.items()]}
        for _, series, asked in packed
    ]  # fmt: skip


def test_each_alert_fires_on_what_it_is_about_and_on_nothing_else(tmp_path: Path) -> None:
    assert {f"Cypria{name.split(maxsplit=1)[0]}" for name in CASES} == set(ALERTS)
    file = tmp_path / "rules_test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(one) for one in FILES], "tests": packs()}))
    done = subprocess.run(
        ["promtool", "test", "rules", str(file)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [["rules", *map(str, FILES)], ["config", str(FOLDER / "prometheus.yml")]])
def test_promtool_finds_nothing_to_say(arguments: list[str]) -> None:
    done = subprocess.run(["promtool", "check", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_that_a_rule_names_exists_and_every_name_is_used_as_its_kind_allows() -> None:
    kinds = {one.name: one.kind for one in described()}
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    for rule in RULES:
        expression = re.sub(r'"[^"]*"', '""', rule["expr"])
        for name in re.findall(r"[a-z_]+:\w+:\w+", expression):
            assert name in recorded, rule
        for name in re.findall(r"(?<![:\w])cypria_\w+", expression):
            family = re.sub("_(bucket|sum|count)$", "", name) if name not in kinds else name
            assert family in kinds, f"{name} of {rule}: no service has it"
            rated = re.search(rf"(rate|increase)\({name}\b", expression) is not None
            assert rated == (kinds[family] in {"counter", "histogram"}), f"{name} of {rule}"


def test_every_alert_says_what_it_is_and_where_to_read_what_to_do() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    sections = dict(re.findall(r"^### (Cypria\w+)\n(.*?)(?=\n### |\Z)", page, re.MULTILINE | re.DOTALL))
    assert set(sections) == set(ALERTS)
    for name, rule in ALERTS.items():
        assert "**What to do.**" in sections[name]
        notes = rule["annotations"]
        assert notes["runbook"] == f"docs/operations.md#{name.lower()}"
        assert notes["summary"]
        assert notes["description"]
        assert rule["labels"]["severity"] in {"warning", "critical"}
