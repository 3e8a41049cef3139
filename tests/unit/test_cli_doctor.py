"""What `cypria doctor` makes of what it is told: the state of each check, what is wrong, what to do."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from services._cli import doctor, findings
from services._runtime.settings_model import Settings
from tests.certificates import CLIENT, Authority
from tests.harness import environment
from tests.system import ROOT

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
MODEL = {"name": "m", "ready_workers": 1, "state": "ready", "reason": ""}
STATUS: dict[str, Any] = {
    "test_id": "ab_test_1", "status": "running", "models": {"variant_a": "stable", "variant_b": "canary"},
    "traffic_split_percent": 20.0, "effective_split_percent": 20.0, "metrics": {},
}  # fmt: skip
THRESHOLDS = Settings().model_dump(mode="json")["monitoring"]["thresholds"]


def figures(**fields: Any) -> dict[str, Any]:
    return {"request_count": 100, "error_rate": 0.0, "avg_latency_ms": 100.0, "overdue": 0, **fields}


def alert(**fields: Any) -> dict[str, Any]:
    time = (NOW - timedelta(minutes=5)).isoformat()
    return {"level": "CRITICAL", "title": "Too slow", "incident": "i", "resolved": False, "time": time, "last_time": time,
            "deliveries": [], **fields}  # fmt: skip


KEY = {"name": "ci", "role": "operator", "state": "active", "expires_at": (NOW + timedelta(days=3)).isoformat(), "ends_soon": True}


@pytest.mark.parametrize(
    ("check", "state", "detail", "remedy"),
    [
        (findings.models([MODEL]), "ok", "1 served", ""),
        (findings.models([{**MODEL, "ready_workers": 0, "state": "failed", "reason": "no file"}]), "failed", "no worker serves m (no file)", "look at the log of inference"),
        (findings.models([{**MODEL, "ready_workers": 0, "state": "loading"}]), "warning", "m (loading): on the way", "cypria models show"),
        (findings.models([{**MODEL, "ready_workers": 0, "state": "unloaded"}]), "ok", "0 served, not loaded: m", "cypria models load"),
        (findings.registry([{**MODEL, "entry": {"desired": "loaded", "stage": "changing"}}]), "warning", "m is not loaded everywhere yet", "cypria models show"),
        (findings.monitor({"degraded": ["monitor: away"]}), "failed", "monitor: away", "look at the log of monitor"),
        (findings.monitor({"monitoring_active": False}), "warning", "verdicts only alert", "monitoring/start"),
        (findings.monitor({"monitoring_active": True, "lag_seconds": 99.0, "check_interval_seconds": 30}), "warning", "99.0 s behind", "give the monitor CPU"),
        (findings.running([{"test_id": None}])[0], "ok", "none", ""),
        (findings.running([STATUS])[0], "ok", "ab_test_1 (running, canary against stable)", "a start on stable answers 409: `cypria stop"),
        (findings.running([{**STATUS, "degraded": ["metrics: away"]}])[0], "failed", "metrics: away", "look at the log"),
        (findings.running([{**STATUS, "degraded": ["metrics: away"], "effective_split_percent": 0.0}])[2], "warning", "0 % in force", "lease has lapsed"),
        (findings.running([STATUS])[1], "ok", "ab_test_1: 20 %", ""),
        (findings.running([{**STATUS, "effective_split_percent": 0.0}])[1], "warning", "0 % in force of 20 % ordered", "lease has lapsed, or the breaker"),
        (findings.running([{**STATUS, "status": "paused", "effective_split_percent": 0.0, "waiting_for": "approval"}])[1], "ok", "waits for approval", "cypria approve"),
        (findings.variants({**STATUS, "metrics": {"variant_b": figures(error_rate=7.5)}}, THRESHOLDS)[0], "warning", "100 requests, 7.50 % errors, 100 ms", "`cypria split 5 --test-id ab_test_1`"),
        (findings.variants({**STATUS, "metrics": {"variant_a": figures(avg_latency_ms=1600.0)}}, THRESHOLDS)[0], "warning", "1600 ms on average", "the stable model itself"),
        (findings.variants({**STATUS, "metrics": {"variant_b": figures(error_rate=90.0, request_count=19)}}, THRESHOLDS)[0], "ok", "too few to tell", ""),
        (findings.variants({**STATUS, "metrics": {"variant_b": figures(avg_latency_ms=None, overdue=2)}}, THRESHOLDS)[0], "warning", "2 overdue", "cypria rollback"),
        (findings.alerts({"alerts": [alert()]}, NOW)[0], "warning", "1 stand: CRITICAL Too slow", "cypria alerts list"),
        (findings.alerts({"alerts": [alert(resolved=True), alert()]}, NOW)[0], "ok", "no grave one stands", ""),
        (findings.alerts({"alerts": [alert(level="WARNING")]}, NOW)[0], "ok", "no grave one stands", ""),
        (findings.alerts({"alerts": [alert(last_time=(NOW - timedelta(days=2)).isoformat())]}, NOW)[0], "ok", "no grave one stands", ""),
        (findings.alerts({"alerts": [alert(deliveries=[{"destination": "slack", "status": "failed", "reason": "404"}])]}, NOW)[1], "warning", "1 alerts were not taken by slack (404)", "cypria alerts redrive"),
        (findings.alerts({"alerts": [alert(deliveries=[{"destination": "slack", "status": "sending", "reason": "HTTP 503"}])]}, NOW)[1], "warning", "1 alerts wait for slack (HTTP 503)", "cypria alerts test"),
        (findings.not_ready({}, "http://x"), "failed", "it cannot serve yet", "http://x/ready"),
        (findings.not_ready({"bus": "no connection to NATS", "models": "none"}, "http://x"), "failed", "bus: no connection to NATS; models: none", "start NATS"),
        (findings.not_ready({"models": "no ready worker for: m"}, "http://x"), "failed", "no ready worker for: m", "cypria models list"),
        (findings.history({"tests": []}), "ok", "no test has ended", ""),
        (findings.history({"tests": [{"test_id": "t", "status": "completed", "end_time": "then"}]}), "ok", "t completed at then", ""),
        (findings.history({"tests": [{"test_id": "t", "status": "rolled_back", "end_time": "then", "reason": "errors"}]}), "ok", "t rolled_back at then: errors", "`cypria report t`, then `cypria replay t`"),
        (findings.integrations([{"integration": "cache", "dead_letters": 2}])[0], "warning", "cache has 2 dead letters", "cypria integrations redrive"),
        (findings.integrations([{"integration": "aar", "dead_letters": 0, "last": {"status": "failed", "reason": "503"}}])[0], "warning", "aar fails (503)", "cypria integrations test"),
        (findings.integrations([{"integration": "aar", "dead_letters": 0, "last": {"status": "sent"}}])[0], "ok", "1, nothing failed", ""),
        (findings.keys([KEY, {**KEY, "name": "late", "ends_soon": False}], NOW), "warning", "ci (operator) expires in 3.0 days", "`cypria keys rotate ci --expires-in-days DAYS`"),
        (findings.keys([{**KEY, "ends_soon": False}], NOW), "ok", "1 good, none ends soon", ""),
        (findings.certificate("edge certificate", (NOW + timedelta(days=3)).timestamp(), NOW), "warning", "good for 3.0 days", "renew it"),
        (findings.certificate("edge certificate", (NOW + timedelta(days=30)).timestamp(), NOW), "ok", "good for 30.0 days", ""),
        (findings.certificate("edge certificate", (NOW - timedelta(days=1)).timestamp(), NOW), "failed", "ended 1.0 days ago", "renew it"),
        (findings.machine(9.0, 2, 8 << 30, 16 << 30)[0], "warning", "load 9.0 on 2 cores", "htop"),
        (findings.machine(1.0, 2, 1 << 28, 16 << 30)[1], "warning", "0.2 of 16.0 GiB free", "unload a model"),
        (findings.gpus("0, NVIDIA H100, 79000, 81559, 97\n")[0], "warning", "NVIDIA H100: 79000 of 81559 MiB used, 97 % busy", "nearly full"),
        (findings.gpus("0, NVIDIA H100, 1000, 81559, 3\n1, Odd\n")[0], "ok", "1000 of 81559 MiB used", ""),
        (findings.log(['{"level": "info"}', "text", "[]"], "f"), "ok", "no errors at the end of f", ""),
        (findings.log([json.dumps({"level": "error", "event": "chdb_unreadable", "reason": "full", "service": "metrics", "timestamp": "t"})], "f"), "warning", "1 errors at the end of f, the last at t: metrics: chdb_unreadable full", "grep"),
    ],
)  # fmt: skip
def test_each_check_says_what_is_wrong_and_what_to_do(check: findings.Check, state: str, detail: str, remedy: str) -> None:
    assert check.state == state
    assert detail in check.detail
    assert (remedy in check.remedy) if remedy else not check.remedy


def test_a_configuration_that_starts_no_test_is_told() -> None:
    shown = Settings().model_dump(mode="json")
    assert findings.configuration(shown).state == "ok"
    shown["ab_testing"]["enabled"] = False
    check = findings.configuration(shown)
    assert (check.state, "every start answers 409" in check.detail) == ("warning", True)
    shown["ab_testing"]["enabled"], shown["monitoring"]["enabled"] = True, False
    assert "no verdict takes a bad canary out" in findings.configuration(shown).detail


def test_gpus_are_asked_of_nvidia_smi_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    for script, state, detail in (
        ("echo '0, NVIDIA A100, 512, 40960, 5'", "ok", "NVIDIA A100: 512 of 40960 MiB used, 5 % busy"),
        ("echo 'Failed to initialize NVML' >&2; exit 9", "warning", "nvidia-smi fails: Failed to initialize NVML"),
    ):
        smi.write_text(f"#!/bin/sh\n{script}\n")
        smi.chmod(0o755)
        (check,) = [check for check in doctor._machine() if check.name.startswith("gpu")]
        assert (check.state, check.detail) == (state, detail)


def test_a_file_is_looked_at_before_anything_runs(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    edge, old = authority.issue("edge", days=(-1, 5)), authority.issue("old", days=(-3, -1), purpose=CLIENT)
    file, secret = tmp_path / "cypria.yaml", tmp_path / "secret"
    secret.write_text("SECRETMARK-0123456789\n")
    good = (
        f"http: {{tls: {{cert_file: {edge.cert}, key_file: {edge.key}}}}}\n"
        "security: {api_keys: [{name: a, role: admin, key_env: ADMIN}], signing_key_env: SIGNING}\n"
    )

    def look(text: str, **variables: str) -> tuple[int, dict[str, Any], str]:
        file.write_text(text)
        done = subprocess.run(
            [sys.executable, "-m", "services.cli", "doctor", "--config", str(file), "--json"], capture_output=True, text=True,
            env=environment(PYTHONPATH=str(ROOT), **variables), cwd=ROOT, timeout=60, check=False,
        )  # fmt: skip
        data = json.loads(done.stdout)
        assert data["ok"] == (done.returncode == 0), done.stderr
        assert "SECRETMARK" not in done.stdout + done.stderr
        return done.returncode, {check["name"]: check for check in data["checks"]}, done.stderr

    status, checks, said = look(good, ADMIN="SECRETMARK", SIGNING_FILE=str(secret))
    assert (status, checks["secrets"]["detail"]) == (0, "2 variables are named, all set"), said
    assert (checks["http.tls"]["state"], "good for 5.0 days" in checks["http.tls"]["detail"]) == ("warning", True)
    status, checks, _ = look(good, ADMIN="SECRETMARK")
    assert (status, checks["secrets"]["detail"]) == (1, "security.signing_key_env: the environment variable SIGNING is not set")
    assert "SIGNING_FILE to a file that holds it" in checks["secrets"]["remedy"]
    status, checks, _ = look(f"nats: {{servers: ['tls://h'], tls: {{cert_file: {old.cert}, key_file: {old.key}}}}}\n")
    assert (status, "(certificate has expired): renew it" in checks["certificates"]["detail"]) == (1, True)
    status, checks, _ = look("models: [{name: m, engine: transformers, path: /nowhere/m}]\nmodel_sources: {allow: [/nowhere/]}\n")
    assert (status, checks["models"]["detail"]) == (0, "models.0.path: /nowhere/m is no directory on this machine")
    status, checks, _ = look("monitoring: {interval: 3}\n")
    assert (status, f"{file}: monitoring.interval: unknown key" in checks["configuration file"]["detail"]) == (1, True)


@pytest.mark.parametrize(("told", "detail"), [(None, "where it goes is not known"), ("", "goes to stderr alone")])
def test_a_log_is_not_said_to_be_missing_where_nobody_told_of_it(told: str | None, detail: str) -> None:
    [check] = doctor._log(told)
    assert check.state == "skipped"
    assert detail in check.detail


async def test_a_service_that_ended_and_did_not_come_back_is_told(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()

    def wrote(service: str, pid: int) -> None:
        told = {"service": service, "pid": pid, "host": "127.0.0.1", "port": 1}
        (run / f"{service}.{pid}.json").write_text(json.dumps(told))

    nobody = 2**22 + 1  # above every process id
    wrote("metrics", nobody)
    assert doctor._processes(tmp_path) == []  # nothing runs here
    wrote("router", os.getpid())
    wrote("monitor", nobody)
    wrote("monitor", os.getpid())
    found = {told["service"]: told for told in doctor._processes(tmp_path)}
    assert {service for service, told in found.items() if told.get("ended")} == {"metrics"}
    check = await doctor._process(found["metrics"])
    assert (check.name, check.state) == ("process metrics", "failed")
    assert f"process {nobody} has ended" in check.detail
