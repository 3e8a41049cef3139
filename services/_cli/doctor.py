"""`cypria doctor`: what an operator would look at first, one line each, with the remedy where something is wrong.

It asks the running system with the key at hand, then the processes and the machine here; or, before anything runs, it
looks at a configuration file alone.
"""

import asyncio
import json
import os
import shutil
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psutil

from services._cli import api, findings
from services._cli.findings import Check
from services._runtime import named_variables, tls, variables
from services._runtime.settings import ConfigError, load
from services._runtime.settings_engines import hub_source
from services._runtime.settings_model import Settings
from services._runtime.supervisor import http_get

LOW_DISK = 1 << 30
PREFIX = "/v1/ab-testing"
MOST_TESTS = 3
"""Of so many running tests each is looked at: more questions would use up the key's limit."""
LOG_TAIL = 256 << 10
_PATIENCE_S = 10.0
_SMI = ("--query-gpu=index,name,memory.used,memory.total,utilization.gpu", "--format=csv,noheader,nounits")


def examine(data_dir: Path) -> list[Check]:
    """Everything that can be told from here; an edge that does not answer ends the questions to it."""
    return asyncio.run(_examine(data_dir))


def examine_file(path: Path) -> list[Check]:
    """A configuration, before anything runs with it."""
    try:
        settings = load(path, os.environ)
    except ConfigError as exc:
        return [Check("configuration file", "failed", line) for line in str(exc).splitlines()]
    usable = Check("configuration file", "ok", f"{path} can be used")
    return [usable, *_models(settings), *_secrets(settings), *_certificates(settings)]


def exit_status(checks: list[Check]) -> int:
    """1 where a check failed."""
    return int(any(check.state == "failed" for check in checks))


def as_data(checks: list[Check]) -> dict[str, Any]:
    """For `--json`."""
    return {"ok": not exit_status(checks), "checks": [asdict(check) for check in checks]}


async def _examine(data_dir: Path) -> list[Check]:
    found = await _edge()
    log_file: str | None = None
    if found[0].state != "failed":
        told, log_file = await _system()
        found += told
    processes = [await _process(told) for told in _processes(data_dir)]
    return [*found, *processes, *_log(log_file), *_machine(), *_disk(data_dir)]


async def _edge() -> list[Check]:
    try:
        await api.acall("GET", "/health")
    except api.ApiError as exc:
        return [Check("edge", "failed", str(exc), "check CYPRIA_URL")]
    except (OSError, aiohttp.ClientError) as exc:
        detail = f"no answer from {api.url()} ({api.explained(exc)})"
        return [Check("edge", "failed", detail, "start `cypria up`, or set CYPRIA_URL")]
    found = [Check("edge", "ok", f"{api.url()} answers"), *await _edge_certificate()]
    try:
        await api.acall("GET", "/ready")
    except api.ApiError as exc:
        missing = exc.body.get("missing") if isinstance(exc.body, dict) else None
        return [*found, findings.not_ready(missing or {}, api.url())]
    return [*found, Check("ready", "ok", "it can serve")]


async def _edge_certificate() -> list[Check]:
    where, secured = urlsplit(api.url()), api.tls_context()
    if not isinstance(secured, ssl.SSLContext):
        return []
    try:
        async with asyncio.timeout(_PATIENCE_S):
            _, writer = await asyncio.open_connection(where.hostname, where.port or 443, ssl=secured)
    except OSError:
        return []
    shown = writer.get_extra_info("peercert") or {}
    writer.close()
    ends = ssl.cert_time_to_seconds(str(shown["notAfter"]))
    return [findings.certificate("edge certificate", ends, datetime.now(UTC))]


async def _system() -> tuple[list[Check], str | None]:
    """(what the control API tells, its log file: empty where it has none, None where that is not told)."""
    if api.key() is None:
        return [Check("key", "failed", "no key", "set CYPRIA_API_KEY, or CYPRIA_DATA_DIR to where admin.key is")], None
    try:
        shown = await _ask("/models")
        monitoring = await _ask("/monitoring/status")
        status = await _ask("/status")
    except api.ApiError as exc:
        return [Check("key", "failed", str(exc), "set CYPRIA_API_KEY to a key with the role viewer or more")], None
    others = [test for test in status.get("running_tests") or [] if test != status["test_id"]]
    statuses = [status, *[await _ask("/status", test_id=test) for test in others[: MOST_TESTS - 1]]]
    found = [
        Check("key", "ok", "good for reading"), findings.models(shown["models"]), findings.registry(shown["models"]),
        findings.monitor(monitoring), *findings.running(statuses),
    ]  # fmt: skip
    config: dict[str, Any] | None = None

    async def settled(name: str, look: Callable[[], Awaitable[list[Check]]]) -> None:
        try:
            found.extend(await look())
        except api.ApiError as exc:
            skipped = exc.status == 403
            found.append(Check(name, "skipped" if skipped else "failed", str(exc),
                               "" if skipped else "look at the log of that service"))  # fmt: skip

    async def configuration() -> list[Check]:
        nonlocal config
        config = dict(await _ask("/config"))
        return [findings.configuration(config)]

    await settled("configuration", configuration)
    for name, look in (("keys", _keys), ("alerts", _alerts), ("history", _history), ("integrations", _integrations)):
        await settled(name, look)
    thresholds = (config or Settings().model_dump(mode="json"))["monitoring"]["thresholds"]
    for one in statuses:
        found += findings.variants(one, thresholds)
    return found, None if config is None else config["logging"]["file"] or ""


async def _keys() -> list[Check]:
    return [findings.keys((await _ask("/keys"))["keys"], datetime.now(UTC))]


async def _alerts() -> list[Check]:
    return findings.alerts(await _ask("/monitoring/alerts", limit=50), datetime.now(UTC))


async def _history() -> list[Check]:
    return [findings.history(await _ask("/history", limit=1))]


async def _integrations() -> list[Check]:
    return findings.integrations((await _ask("/integrations"))["integrations"])


async def _ask(path: str, **params: Any) -> Any:
    """A question to the control API; one that came too soon after others is asked again."""
    try:
        return await api.acall("GET", PREFIX + path, params=params)
    except api.ApiError as exc:
        if exc.status != 429 or exc.retry_after > _PATIENCE_S:
            raise
        await asyncio.sleep(exc.retry_after)
        return await api.acall("GET", PREFIX + path, params=params)


def _processes(data_dir: Path) -> list[dict[str, Any]]:
    """What every live process wrote to this machine's data dir about where it listens."""
    found = []
    gone: dict[str, dict[str, Any]] = {}
    for file in sorted((data_dir / "run").glob("*.json")):
        try:
            told = json.loads(file.read_text())
            told = {**told, "service": str(told["service"]), "host": str(told["host"]), "port": int(told["port"])}
            alive = Path(f"/proc/{told['pid']}").exists()
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if alive:
            found.append(told)
        else:
            gone[told["service"]] = {**told, "ended": True}
    # What ended has a successor with a file of its own, or ends whenever it is started; with none alive nothing runs.
    living = {told["service"] for told in found}
    return found + [told for service, told in gone.items() if living and service not in living]


async def _process(told: dict[str, Any]) -> Check:
    if told.get("ended"):
        detail = f"not running: process {told['pid']} has ended, none followed"
        return Check(f"process {told['service']}", "failed", detail,
                     f"look at the log of {told['service']}; `cypria up` starts it again and again")  # fmt: skip
    host = "127.0.0.1" if told["host"] == "0.0.0.0" else told["host"]  # noqa: S104
    certificate = Path(told["certificate"]) if told.get("certificate") else None
    status, body = await http_get(host, told["port"], "/ready", certificate=certificate)
    name = f"process {told['service']}"
    if status == 200:
        return Check(name, "ok", "ready")
    return Check(name, "failed", str(body.get("missing") or "no answer"), f"look at the log of {told['service']}")


def _log(log_file: str | None) -> list[Check]:
    if log_file is None:
        return [Check("log", "skipped", "where it goes is not known: the configuration was not told",
                      "`cypria doctor` with an admin's key, while the edge answers")]  # fmt: skip
    if not log_file:
        return [Check("log", "skipped", "goes to stderr alone", "set logging.file or AB_TEST_LOG_FILE to keep it")]
    path = Path(log_file)
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError as exc:
        return [Check("log", "skipped", f"{path} cannot be read here ({exc.strerror})", "look where it is written")]
    return [findings.log(lines, str(path))]


def _machine() -> list[Check]:
    memory = psutil.virtual_memory()
    found = findings.machine(os.getloadavg()[0], os.cpu_count() or 1, memory.available, memory.total)
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return found
    try:
        done = subprocess.run([smi, *_SMI], capture_output=True, text=True, timeout=_PATIENCE_S, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as exc:
        return [*found, Check("gpu", "warning", f"nvidia-smi does not answer ({exc})", "look at the driver: `dmesg`")]
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines() or [f"status {done.returncode}"]
        return [*found, Check("gpu", "warning", f"nvidia-smi fails: {said[0]}", "look at the driver: `dmesg`")]
    return [*found, *findings.gpus(done.stdout)]


def _disk(data_dir: Path) -> list[Check]:
    try:
        free = shutil.disk_usage(data_dir).free
    except OSError:
        return []
    low = free < LOW_DISK
    detail = f"{free / (1 << 30):.1f} GiB free at {data_dir}"
    return [Check("disk", "warning" if low else "ok", detail, "make room, or move the data dir" if low else "")]


def _models(settings: Settings) -> list[Check]:
    """Directories of models that are not here; where inference runs elsewhere, they have to be there."""
    return [
        Check("models", "warning", f"models.{index}.path: {model.path} is no directory on this machine",
              f"the model '{model.name}' is loaded where inference runs: put it there, or correct the path")
        for index, model in enumerate(settings.models)
        if model.path and hub_source(model.path) is None and not model.path.is_dir()
    ]  # fmt: skip


def _secrets(settings: Settings) -> list[Check]:
    """Whether each variable that the file names is set."""
    named = list(named_variables.named(settings))
    found = []
    for setting, variable in named:
        try:
            if not variables.value(variable, os.environ):
                found.append(Check("secrets", "failed", f"{setting}: the environment variable {variable} is not set",
                                   f"set it, or {variable}{variables.SUFFIX} to a file that holds it"))  # fmt: skip
        except ConfigError as exc:
            found.append(Check("secrets", "failed", f"{setting}: {exc}"))
    return found or [Check("secrets", "ok", f"{len(named)} variables are named, all set")]


def _certificates(settings: Settings) -> list[Check]:
    """Whether each certificate that the file names can be used, and for how long."""
    found = []
    http, now = settings.http.tls, datetime.now(UTC)
    try:
        if http:
            tls.server_context(http, "http.tls")
            ends = tls.certificate("http.tls", http.cert_file, http.key_file, of_client=False).ends
            found.append(findings.certificate("http.tls", ends, now))
        for section, own in (("nats.tls", settings.nats.tls), ("clickhouse.tls", settings.clickhouse.tls)):
            if own is None:
                continue
            tls.client_context(own, section)
            if own.cert_file and own.key_file:
                ends = tls.certificate(section, own.cert_file, own.key_file, of_client=True).ends
                found.append(findings.certificate(section, ends, now))
    except ConfigError as exc:
        found.append(Check("certificates", "failed", str(exc)))
    return found
