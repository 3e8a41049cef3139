"""`cypria models`: what a file may be, and how an order is followed to its end."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from services._cli import api, progress, show
from services._cli.progress import Follower
from services.cli import app

ROOT = Path(__file__).parents[2]


def row(worker: str = "w1", state: str = "ready", generation: int = 2, **fields: Any) -> dict[str, Any]:
    return {"worker": worker, "state": state, "generation": generation, "progress": None, "next_state": "",
            "next_generation": 0, "next_reason": "", "reason": "", **fields}  # fmt: skip


def model(*rows: dict[str, Any], **entry: Any) -> dict[str, Any]:
    wanted = {"desired": "loaded", "stage": "changing", "generation": 2, "actor": "ops", "reason": "", **entry}
    return {"by_worker": [*rows], "entry": wanted}


def followed(monkeypatch: pytest.MonkeyPatch, *seen: Any, status: str = "replacing", message: str = "") -> tuple[str, str]:
    looks = iter(seen)
    monkeypatch.setattr(progress, "FAST_S", 0.0)
    monkeypatch.setattr(progress, "SLOW_S", 0.0)

    async def acall(_method: str, _path: str) -> Any:
        found = next(looks)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(api, "acall", acall)
    done = {"status": status, "generation": 2, "message": message}
    return asyncio.run(Follower("/x", done, quiet=False).run())


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Console:
    console = Console(width=100, record=True, color_system=None, force_terminal=False)
    monkeypatch.setattr(show, "console", console)
    return console


def test_the_way_to_ready_is_told_in_lines(monkeypatch: pytest.MonkeyPatch, screen: Console) -> None:
    seen = [
        model(row(generation=1, next_state="verifying", next_generation=2, progress=share)) for share in (0.01, 0.05, 0.55)
    ]
    over = api.ApiError(429, "slow down", 0.0)
    assert followed(monkeypatch, *seen, over, model(row(), stage="settled")) == ("ready", "")
    assert screen.export_text().splitlines() == ["w1 verifying 1%", "w1 verifying 55%", "w1 ready"]


def test_on_a_terminal_there_is_a_bar_for_each_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=100, record=True, force_terminal=True)
    monkeypatch.setattr(show, "console", console)
    loading = row("w2", "loading", progress=0.4)
    assert followed(monkeypatch, model(row(), loading), model(row(), row("w2"), stage="settled")) == ("ready", "")
    shown = console.export_text()
    assert "w1 ready" in shown
    assert "w2 loading" in shown or "w2 ready" in shown


@pytest.mark.usefixtures("screen")
def test_how_orders_end(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = row(state="failed", reason="no such file")
    assert followed(monkeypatch, model(), model(failed), status="registered") == ("failed", "no such file")
    loading = row("w2", "loading")
    assert followed(monkeypatch, model(failed, loading), model(failed, row("w2"), stage="settled")) == (
        "ready", "but not everywhere: w1: no such file",
    )  # fmt: skip
    back = model(row(generation=1), generation=3, actor="keeper", reason="'w1': no such file")
    assert followed(monkeypatch, model(row(generation=1)), back) == ("failed", "'w1': no such file; the one before goes on")
    back["entry"]["reason"] += "; the present one goes on"
    assert followed(monkeypatch, model(row(generation=1)), back) == ("failed", "'w1': no such file; the present one goes on")
    assert followed(monkeypatch, model(row(generation=3), generation=3, actor="eve"))[1].startswith("eve wants")
    gone = api.ApiError(404, "unknown")
    assert followed(monkeypatch, gone) == ("failed", "somebody has removed it meanwhile")
    assert followed(monkeypatch, model(row(generation=1)), gone, status="removed") == ("removed", "")
    assert followed(monkeypatch, {"by_worker": [row(generation=2)], "entry": None}, status="removed") == ("removed", "")
    unloaded = model(row(state="unloaded"), desired="unloaded", stage="settled")
    assert followed(monkeypatch, unloaded, status="unloading") == ("unloaded", "")
    assert followed(monkeypatch, model(), status="registered", message="no worker that it is for is alive") == ("registered", "")


@pytest.mark.parametrize(
    ("text", "says"),
    [("[a]", "no entry of `models`"), ("engine: vllm", "no entry of `models`"), ("{", "not valid YAML"),
     ("{name: m, engine: magic}", "engine: "), ("{name: m, engine: vllm}", "needs path"),
     ("{name: m, engine: vllm, path: /m, colour: red}", "colour: ")],
)  # fmt: skip
def test_what_is_no_entry_exits_with_2(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(text)
    done = CliRunner().invoke(app, ["models", "register", str(file)])
    assert done.exit_code == 2
    assert says in done.stderr
    assert CliRunner().invoke(app, ["models", "register", str(tmp_path / "none.yaml")]).exit_code == 2
    assert CliRunner().invoke(app, ["models", "plan"]).exit_code == 2
    assert CliRunner().invoke(app, ["models", "plan", "m", "--config", str(file)]).exit_code == 2


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "m.yaml"
    file.write_text("{name: 'a b/c?', engine: vllm, path: weights, adapter: /lora}")
    sent: list[Any] = []

    def call(method: str, path: str, **options: Any) -> Any:
        sent.append((method, path, options.get("body")))
        return {"model": "m", "status": "registered", "generation": 1, "message": ""}

    monkeypatch.setattr(api, "call", call)
    done = CliRunner().invoke(app, ["models", "register", str(file), "--replace", "--rolling", "--no-wait", "--json"])
    assert done.exit_code == 0
    body = {"name": "a b/c?", "engine": "vllm", "path": str(tmp_path / "weights"), "adapter": "/lora", "replace": True,
            "strategy": "rolling"}  # fmt: skip
    CliRunner().invoke(app, ["models", "unload", "a b/c?", "--no-wait"])
    assert sent == [
        ("POST", "/v1/ab-testing/models", body), ("POST", "/v1/ab-testing/models/a%20b/c%3F/unload", {}),
    ]  # fmt: skip


def test_a_plan_of_this_machine_is_json_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "cypria.yaml"
    file.write_text(f"models: [{{name: m, engine: transformers, path: {ROOT / 'infra/models/stable'}}}]\n")
    # A process of its own, as logs are set up once for each.
    command = [sys.executable, "-m", "services.cli", "models", "plan", "--config", str(file), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert json.loads(done.stdout)["needs"][0]["model"] == "m"


def test_a_digest_is_printed_for_pinning(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = CliRunner().invoke(app, ["models", "digest", str(tmp_path)])
    assert done.exit_code == 0
    assert done.stdout.startswith("sha256:")
    assert CliRunner().invoke(app, ["models", "digest", str(tmp_path / "none")]).exit_code == 1
