"""What `cypria doctor` makes of what it was told: each check in words, with the remedy where something is wrong."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

RESTING = frozenset({"registered", "unloaded"})
"""States of a model that is not served because nobody wants it to be."""
COMING = frozenset({"verifying", "loading", "warming"})
"""States of a model that will be served in a while."""
GRAVE = frozenset({"CRITICAL", "EMERGENCY"})
RECENT = timedelta(hours=24)
ENDS_SOON_DAYS = 14
LATE_S = 5
FEW = 20
"""Below so many requests a variant's figures say nothing yet."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; ``state`` is ``ok``, ``skipped``, ``warning`` or ``failed``."""

    name: str
    state: str
    detail: str
    remedy: str = ""


def not_ready(missing: dict[str, Any], url: str) -> Check:
    """What keeps the edge from serving, as its `/ready` tells it."""
    said = "; ".join(f"{part}: {why}" for part, why in missing.items())
    remedy = f"{url}/ready tells what is missing"
    if "bus" in missing:  # without it everything else is missing, too
        remedy = "start NATS (of its own: nats/nats-server.log in the data dir says why), or correct nats.servers"
    elif "models" in missing:
        remedy = "`cypria models list` tells what becomes of them, the log of inference why"
    return Check("ready", "failed", f"it cannot serve: {said}" if said else "it cannot serve yet", remedy)


def models(shown: list[dict[str, Any]]) -> Check:
    """Models that nobody serves are wrong, unless nobody has asked for them to be loaded."""
    idle = [model for model in shown if not model["ready_workers"]]
    resting = [model["name"] for model in idle if _rests(model)]
    away = [f"{m['name']} ({m.get('reason') or m['state']})" for m in idle if not _rests(m)]
    coming = [model["state"] in COMING for model in idle if not _rests(model)]
    if away and all(coming):
        return Check("models", "warning", f"{', '.join(away)}: on the way", "`cypria models show NAME` tells how far")
    if away:
        return Check("models", "failed", f"no worker serves {', '.join(away)}",
                     "look at the log of inference; a start with such a model is refused")  # fmt: skip
    unloaded = f", not loaded: {', '.join(resting)}" if resting else ""
    remedy = "`cypria models load NAME` before a test with it" if resting else ""
    return Check("models", "ok", f"{len(shown) - len(idle)} served{unloaded}", remedy)


def _rests(model: dict[str, Any]) -> bool:
    wanted = (model.get("entry") or {}).get("desired")
    return wanted == "unloaded" or (wanted is None and model["state"] in RESTING)


def registry(shown: list[dict[str, Any]]) -> Check:
    """Changes of models that are not done everywhere, and workers on which a model has failed."""
    said = [
        f"{m['name']} is not {m['entry']['desired']} everywhere yet ({m.get('reason') or m['state']})"
        for m in shown
        if m.get("entry") and m["entry"]["stage"] != "settled"
    ]
    partly = [model for model in shown if model["ready_workers"] and model.get("reason")]
    said += [f"{model['name']} failed on a worker ({model['reason']})" for model in partly]
    if said:
        return Check("registry", "warning", "; ".join(said), "`cypria models show NAME` tells which worker and why")
    registered = sum(1 for model in shown if model.get("entry"))
    return Check("registry", "ok", f"{registered} registered, all settled" if registered else "nothing registered")


def monitor(told: dict[str, Any]) -> Check:
    """Whether verdicts are made, and take effect."""
    if told.get("degraded"):
        return Check("monitor", "failed", "; ".join(told["degraded"]),
                     "look at the log of monitor; without it a canary's lease lapses")  # fmt: skip
    if not told["monitoring_active"]:
        return Check("monitor", "warning", "stopped, verdicts only alert", "POST /v1/ab-testing/monitoring/start")
    lag = told.get("lag_seconds") or 0
    if lag > told["check_interval_seconds"] + LATE_S:
        return Check("monitor", "warning", f"watches, {lag:.1f} s behind", "give the monitor CPU, or look at its log")
    return Check("monitor", "ok", f"watches, {lag:.1f} s behind")


def configuration(shown: dict[str, Any]) -> Check:
    """Settings that keep a test from starting, or a verdict from acting."""
    if not shown["ab_testing"]["enabled"]:
        return Check("configuration", "warning", "A/B testing is off: every start answers 409",
                     "set ab_testing.enabled, or unset APHRODITE_AB_TESTING_ENABLED")  # fmt: skip
    if not shown["monitoring"]["enabled"]:
        return Check("configuration", "warning", "monitoring is off: no verdict takes a bad canary out",
                     "set monitoring.enabled")  # fmt: skip
    logging = shown["logging"]
    level = "DEBUG" if logging["debug"] else logging["level"]
    verbose = ", verbose metrics" if logging["verbose_metrics"] else ""
    return Check("configuration", "ok", f"A/B testing is on, log level {level}{verbose}")


def running(statuses: Sequence[dict[str, Any]]) -> list[Check]:
    """Tests that run, and so keep another from starting on the same model; whether each splits as it was told."""
    degraded = [reason for status in statuses for reason in status.get("degraded") or []]
    found = [
        Check("status", "failed", reason, "look at the log of that service; splitting goes on")
        for reason in dict.fromkeys(degraded)
    ]
    live = [status for status in statuses if status.get("test_id")]
    if not live:
        return found or [Check("running test", "ok", "none")]
    shown = ", ".join(f"{one['test_id']} ({one['status']}, {_arms(one)})" for one in live)
    taken = sorted({str((one.get("models") or {}).get("variant_a")) for one in live})
    remedy = f"a start on {' or '.join(taken)} answers 409: `cypria stop --test-id ID` first"
    return [*found, Check("running test", "ok", shown, remedy), *(_split(one) for one in live)]


def _arms(status: dict[str, Any]) -> str:
    return " against ".join(model for _, model in sorted((status.get("models") or {}).items(), reverse=True))


def _split(status: dict[str, Any]) -> Check:
    test_id, ordered = status["test_id"], status.get("traffic_split_percent") or 0.0
    in_force = status.get("effective_split_percent")
    if status["status"] == "running" and in_force is not None and in_force < ordered:
        detail = f"{test_id}: {in_force:g} % in force of {ordered:g} % ordered"
        return Check("split", "warning", detail,
                     "the monitor's lease has lapsed, or the breaker is open: see monitor and alerts")  # fmt: skip
    waiting = f", waits for {status['waiting_for']}" if status.get("waiting_for") else ""
    remedy = "`cypria approve` or `cypria rollback`" if waiting else ""
    return Check("split", "ok", f"{test_id}: {ordered:g} %{waiting}", remedy)


def variants(status: dict[str, Any], thresholds: dict[str, Any]) -> list[Check]:
    """Each variant's figures beside `monitoring.thresholds`."""
    found = []
    for variant, figures in sorted((status.get("metrics") or {}).items()):
        name = f"health of {variant.removeprefix('variant_').upper()}"
        count = figures["request_count"]
        if count < FEW:
            found.append(Check(name, "ok", f"{status['test_id']}: {count} requests, too few to tell"))
            continue
        said = f"{status['test_id']}: {count} requests, {figures['error_rate']:.2f} % errors"
        latency = figures.get("avg_latency_ms")
        said += f", {latency:.0f} ms on average" if latency is not None else ""
        bad = figures["error_rate"] > thresholds["warning_error_rate"]
        slow = latency is not None and latency > thresholds["warning_latency_ms"]
        overdue = figures.get("overdue", 0)
        said += f", {overdue} overdue" if overdue else ""
        remedy = _relief(variant, status["test_id"]) if bad or slow or overdue else ""
        found.append(Check(name, "warning" if remedy else "ok", said, remedy))
    return found


def _relief(variant: str, test_id: str) -> str:
    if variant == "variant_a":
        return "the stable model itself: look at its engine, and whether it has the machine to itself"
    return f"`cypria split 5 --test-id {test_id}`, or `cypria rollback --test-id {test_id}`"


def alerts(reply: dict[str, Any], now: datetime) -> list[Check]:
    """Grave incidents of the last day that still stand, and alerts that a destination did not take."""
    closed: set[str] = set()
    standing: list[str] = []
    lost: list[str] = []
    late: list[str] = []
    for alert in reply["alerts"]:  # newest first
        if alert["resolved"]:
            closed.add(alert["incident"])
        elif alert["incident"] not in closed and alert["level"] in GRAVE and _is_recent(alert["last_time"], now):
            closed.add(alert["incident"])
            standing.append(f"{alert['level']} {alert['title']} ({alert['time']})")
        if _is_recent(alert["time"], now):
            for one in alert["deliveries"]:
                if one["status"] in {"failed", "sending"} and one["reason"]:
                    (lost if one["status"] == "failed" else late).append(f"{one['destination']} ({one['reason']})")
    found = [Check("alerts", "ok", "no grave one stands")]
    if standing:
        detail = f"{len(standing)} stand: {'; '.join(standing[:3])}"
        found = [Check("alerts", "warning", detail, "`cypria alerts list` has them all")]
    if lost:
        names = ", ".join(sorted(set(lost))[:3])
        detail = f"{len(lost)} alerts were not taken by {names}"
        remedy = "`cypria alerts test` tells whether it works now, `cypria alerts redrive` sends them"
        found.append(Check("deliveries", "warning", detail, remedy))
    if late:
        detail = f"{len(late)} alerts wait for {', '.join(sorted(set(late))[:3])}"
        remedy = "tried again for about an hour; `cypria alerts test` tells whether it works now"
        found.append(Check("deliveries", "warning", detail, remedy))
    return found


def history(reply: dict[str, Any]) -> Check:
    """The last test that ended, and where its reasons are kept."""
    if not reply["tests"]:
        return Check("history", "ok", "no test has ended")
    last = reply["tests"][0]
    said = f"{last['test_id']} {last['status']} at {last['end_time']}"
    if last["status"] not in {"rolled_back", "failed"}:
        return Check("history", "ok", said)
    return Check("history", "ok", f"{said}: {last.get('reason') or 'no reason kept'}",
                 f"unexpected? `cypria report {last['test_id']}`, then `cypria replay {last['test_id']}`")  # fmt: skip


def integrations(shown: list[dict[str, Any]]) -> list[Check]:
    """Integrations that have dead letters, or whose last message has failed so far; nothing where there are none."""
    said = []
    for one in shown:
        last = one.get("last") or {}
        if one["dead_letters"]:
            said.append(f"{one['integration']} has {one['dead_letters']} dead letters")
        elif last and last["status"] != "sent":
            said.append(f"{one['integration']} fails ({last.get('reason') or last['status']})")
    if said:
        remedy = "`cypria integrations test` finds out why, `cypria integrations redrive` sends dead letters back"
        return [Check("integrations", "warning", "; ".join(said), remedy)]
    return [Check("integrations", "ok", f"{len(shown)}, nothing failed")] if shown else []


def keys(shown: list[dict[str, Any]], now: datetime) -> Check:
    """API keys that end soon by themselves."""
    ending = [key for key in shown if key.get("ends_soon")]
    if not ending:
        return Check("keys", "ok", f"{sum(key['state'] == 'active' for key in shown)} good, none ends soon")
    said = []
    for key in sorted(ending, key=lambda one: str(one["expires_at"])):
        days = (datetime.fromisoformat(key["expires_at"]) - now).total_seconds() / 86_400
        said.append(f"{key['name']} ({key['role']}) expires in {max(0.0, days):.1f} days")
    return Check("keys", "warning", "; ".join(said),
                 f"`cypria keys rotate {ending[0]['name']} --expires-in-days DAYS`, or make another one")  # fmt: skip


def log(lines: Iterable[str], name: str) -> Check:
    """Errors among the last lines of a log, one JSON object each."""
    errors = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in {"error", "critical"}:
            errors.append(entry)
    if not errors:
        return Check("log", "ok", f"no errors at the end of {name}")
    last = errors[-1]
    why = last.get("reason") or last.get("error") or ""
    said = f"{last.get('service', '?')}: {last.get('event', '?')} {why}".strip()
    detail = f"{len(errors)} errors at the end of {name}, the last at {last.get('timestamp')}: {said}"
    return Check("log", "warning", detail, f"grep '\"error\"' {name}")


def certificate(name: str, ends: float, now: datetime) -> Check:
    """How long a certificate is good for; ``ends`` in seconds since 1970."""
    left = (datetime.fromtimestamp(ends, UTC) - now).total_seconds() / 86_400
    if left < 0:
        return Check(name, "failed", f"ended {-left:.1f} days ago", "renew it")
    soon = left < ENDS_SOON_DAYS
    return Check(name, "warning" if soon else "ok", f"good for {left:.1f} days", "renew it" if soon else "")


def machine(load: float, cores: int, free: int, total: int) -> list[Check]:
    """CPU and memory of this machine; bytes."""
    busy = load > 2 * cores
    tight = free < total // 20
    return [
        Check("cpu", "warning" if busy else "ok", f"load {load:.1f} on {cores} cores",
              "too much runs here: `htop` shows what" if busy else ""),
        Check("memory", "warning" if tight else "ok", f"{free / (1 << 30):.1f} of {total / (1 << 30):.1f} GiB free",
              "unload a model (`cypria models unload NAME`), or lower model_management.memory_threshold_percent"
              if tight else ""),
    ]  # fmt: skip


def gpus(table: str) -> list[Check]:
    """What `nvidia-smi` says, one GPU a line: index, name, used and total MiB, percent busy."""
    found = []
    for line in table.strip().splitlines():
        parts = [part.strip() for part in line.split(",")]
        try:
            used, total, busy = float(parts[-3]), float(parts[-2]), float(parts[-1])
        except (ValueError, IndexError):
            continue
        full = used > 0.95 * total
        found.append(
            Check(f"gpu {parts[0]}", "warning" if full else "ok",
                  f"{', '.join(parts[1:-3])}: {used:.0f} of {total:.0f} MiB used, {busy:.0f} % busy",
                  "nearly full: give the variants less (engine_args), or a GPU each" if full else "")
        )  # fmt: skip
    return found


def _is_recent(time: str, now: datetime) -> bool:
    return now - datetime.fromisoformat(time) < RECENT
