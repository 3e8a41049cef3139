"""`cypria doctor`: what an operator would look at first, one line each, with the remedy where something is wrong."""

import asyncio
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

from services._cli import api
from services._runtime.supervisor import http_get

LOW_DISK = 1 << 30
RESTING = frozenset({"registered", "unloaded"})
"""States of a model that is not served because nobody wants it to be."""
COMING = frozenset({"verifying", "loading", "warming"})
"""States of a model that will be served in a while."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; ``state`` is ``ok``, ``warning`` or ``failed``."""

    name: str
    state: str
    detail: str


def examine(data_dir: Path) -> list[Check]:
    """Everything that can be told from here; an edge that does not answer ends the questions to it."""
    return asyncio.run(_examine(data_dir))


def exit_status(checks: list[Check]) -> int:
    """1 where a check failed."""
    return int(any(check.state == "failed" for check in checks))


def as_data(checks: list[Check]) -> dict[str, Any]:
    """For `--json`."""
    return {"ok": not exit_status(checks), "checks": [asdict(check) for check in checks]}


async def _examine(data_dir: Path) -> list[Check]:
    found = await _edge()
    if found[0].state != "failed":
        found += await _key()
    told = [await _process(*where) for where in _processes(data_dir)]
    return [*found, *told, *_disk(data_dir)]


async def _edge() -> list[Check]:
    try:
        await api.acall("GET", "/health")
    except api.ApiError as exc:
        return [Check("edge", "failed", str(exc))]
    except (OSError, aiohttp.ClientError) as exc:
        return [Check("edge", "failed", f"no answer from {api.url()} ({exc}): start `cypria up`, or set CYPRIA_URL")]
    alive = Check("edge", "ok", f"{api.url()} answers")
    try:
        await api.acall("GET", "/ready")
    except api.ApiError:
        return [alive, Check("ready", "failed", f"it cannot serve yet: {api.url()}/ready tells what is missing")]
    return [alive, Check("ready", "ok", "it can serve")]


def _models(models: list[dict[str, Any]]) -> Check:
    """Models that nobody serves are wrong, unless nobody has asked for them to be loaded."""
    idle = [model for model in models if not model["ready_workers"]]
    resting = [model["name"] for model in idle if _rests(model)]
    away = [f"{m['name']} ({m.get('reason') or m['state']})" for m in idle if not _rests(m)]
    coming = [model["state"] in COMING for model in idle if not _rests(model)]
    if away and all(coming):
        return Check("models", "warning", f"{', '.join(away)}: on the way, `cypria models show NAME` tells how far")
    if away:
        return Check("models", "failed", f"no worker serves {', '.join(away)}: look at the log of inference")
    unloaded = f", not loaded: {', '.join(resting)}" if resting else ""
    return Check("models", "ok", f"{len(models) - len(idle)} served{unloaded}")


def _rests(model: dict[str, Any]) -> bool:
    wanted = (model.get("entry") or {}).get("desired")
    return wanted == "unloaded" or (wanted is None and model["state"] in RESTING)


def _registry(models: list[dict[str, Any]]) -> Check:
    """Changes of models that are not done everywhere, and workers on which a model has failed."""
    said = [
        f"{m['name']} is not {m['entry']['desired']} everywhere yet ({m.get('reason') or m['state']})"
        for m in models
        if m.get("entry") and m["entry"]["stage"] != "settled"
    ]
    partly = [model for model in models if model["ready_workers"] and model.get("reason")]
    said += [f"{model['name']} failed on a worker ({model['reason']})" for model in partly]
    if said:
        return Check("registry", "warning", f"{'; '.join(said)}: `cypria models show NAME` tells which worker and why")
    registered = sum(1 for model in models if model.get("entry"))
    return Check("registry", "ok", f"{registered} registered, all settled" if registered else "nothing registered")


async def _key() -> list[Check]:
    if api.key() is None:
        return [Check("key", "failed", "no key: set CYPRIA_API_KEY, or CYPRIA_DATA_DIR to where admin.key is")]
    try:
        shown = await api.acall("GET", "/v1/ab-testing/models")
        monitoring = await api.acall("GET", "/v1/ab-testing/monitoring/status")
        status = await api.acall("GET", "/v1/ab-testing/status")
    except api.ApiError as exc:
        return [Check("key", "failed", str(exc))]
    found = [Check("key", "ok", "good for reading"), _models(shown["models"]), _registry(shown["models"])]
    lag = monitoring.get("lag_seconds")
    if monitoring.get("degraded"):
        found.append(Check("monitor", "failed", "; ".join(monitoring["degraded"])))
    elif not monitoring["monitoring_active"]:
        found.append(Check("monitor", "warning", "stopped, verdicts only alert: POST /v1/ab-testing/monitoring/start"))
    else:
        late = lag is not None and lag > monitoring["check_interval_seconds"] + 5
        found.append(Check("monitor", "warning" if late else "ok", f"watches, {lag or 0:.1f} s behind"))
    if status.get("degraded"):
        found.append(Check("running test", "failed", "; ".join(status["degraded"])))
    else:
        running = status.get("running_tests") or []
        found.append(Check("running test", "ok", ", ".join(running) or "none"))
    return found + await _integrations()


async def _integrations() -> list[Check]:
    """Integrations that have dead letters, or whose last message has failed so far; nothing where there are none."""
    try:
        integrations = (await api.acall("GET", "/v1/ab-testing/integrations"))["integrations"]
    except api.ApiError as exc:
        return [Check("integrations", "warning", str(exc))]
    if not integrations:
        return []
    said = []
    for one in integrations:
        last = one.get("last") or {}
        if one["dead_letters"]:
            said.append(f"{one['integration']} has {one['dead_letters']} dead letters")
        elif last and last["status"] != "sent":
            said.append(f"{one['integration']} fails ({last.get('reason') or last['status']})")
    if not said:
        return [Check("integrations", "ok", f"{len(integrations)}, nothing failed")]
    remedy = "`cypria integrations test` finds out why, `cypria integrations redrive` sends dead letters back"
    return [Check("integrations", "warning", f"{'; '.join(said)}: {remedy}")]


def _processes(data_dir: Path) -> list[tuple[str, str, int]]:
    """(service, host, port) of every live process that wrote to this machine's data dir where it listens."""
    found = []
    for file in sorted((data_dir / "run").glob("*.json")):
        try:
            told = json.loads(file.read_text())
            where = str(told["service"]), str(told["host"]), int(told["port"])
            alive = Path(f"/proc/{told['pid']}").exists()
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if alive:  # else it has a successor with a file of its own, or nobody wants it any more
            found.append(where)
    return found


async def _process(service: str, host: str, port: int) -> Check:
    status, body = await http_get("127.0.0.1" if host == "0.0.0.0" else host, port, "/ready")  # noqa: S104
    missing = str(body.get("missing") or "no answer")
    return Check(f"process {service}", *(("ok", "ready") if status == 200 else ("failed", missing)))


def _disk(data_dir: Path) -> list[Check]:
    try:
        free = shutil.disk_usage(data_dir).free
    except OSError:
        return []
    detail = f"{free / (1 << 30):.1f} GiB free at {data_dir}"
    return [Check("disk", "warning" if free < LOW_DISK else "ok", detail)]
