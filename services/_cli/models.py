"""`cypria models`: what models there are, and orders to have others, with their progress."""

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn
from urllib.parse import quote

import typer

from services._cli import api, complete, panels, show

app = typer.Typer(
    invoke_without_command=True, no_args_is_help=False,
    help="List models; or show, register, load, unload, remove, plan and digest them.",
)  # fmt: skip

JsonOption = Annotated[bool, typer.Option("--json", help="Print the API's JSON.")]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Follow it until it is done, or has failed.")]
RollingOption = Annotated[
    bool, typer.Option("--rolling", help="One worker after the other instead of the new one beside the old one.")
]
NameArgument = Annotated[
    str, typer.Argument(autocompletion=complete.models, help="Of the model, as `cypria models` lists it.")
]
_PATH = "/v1/ab-testing/models"
_ROW = (
    "worker", "state", "generation", "progress", "memory_bytes", "running", "queued", "kv_cache", "version", "reason",
)  # fmt: skip
_REGISTER = """
Examples:

\b
  cypria models register llama.yaml
  cypria models register llama.yaml --replace --rolling
  echo '{name: hosted, engine: openai, base_url: "http://127.0.0.1:8000/v1"}' | cypria models register -
"""


@app.callback()
def models(context: typer.Context, json_: JsonOption = False) -> None:
    """List models, their state and digest; or one of the commands."""
    if context.invoked_subcommand is not None:
        return
    data = api.call("GET", _PATH)
    if json_:
        show.as_json(data)
        return
    for model in data["models"]:
        entry = model["entry"] or {}
        wanted = "" if not entry else entry["desired"] + ("" if entry["stage"] == "settled" else f" ({entry['stage']})")
        model["wanted"], model["tests"] = wanted, ", ".join(model["in_use_by"])
    show.rows(data["models"], ["name", "state", "engine", "workers", "wanted", "tests", "digest", "reason"])


@app.command("show", epilog=panels.examples("models show"))
def show_(name: NameArgument, json_: JsonOption = False) -> None:
    """Show one model and how it is on each worker."""
    data = api.call("GET", _of(name))
    if json_:
        show.as_json(data)
        return
    entry = data["entry"]
    show.console.print(show.styled(f"{data['name']}: {data['state']}, engine {data['engine'] or '-'}"))
    if entry:
        by = f" by {entry['actor']}" if entry["actor"] else ""
        why = f": {entry['reason']}" if entry["reason"] else ""
        show.console.print(show.styled(
            f"wanted: {entry['desired']} ({entry['stage']}, generation {entry['generation']}){by}{why}"
        ))  # fmt: skip
    if data["in_use_by"]:
        show.console.print(show.styled(f"in use by: {', '.join(data['in_use_by'])}"))
    for row in data["by_worker"]:
        if row["next_state"]:
            row["state"] += f", next {row['next_state']} ({row['next_generation']})"
            row["reason"] = row["reason"] or row["next_reason"]
    show.rows(data["by_worker"], [*_ROW])


@app.command("register", epilog=_REGISTER)
def register(
    file: Annotated[str, typer.Argument(help="YAML with an entry of `models`; - reads it from the standard input.")],
    replace: Annotated[bool, typer.Option("--replace", help="In place of what has the name.")] = False,
    rolling: RollingOption = False,
    wait: WaitOption = True,
    json_: JsonOption = False,
) -> None:
    """Register a model and load it, or replace one without a failed request."""
    body = {**_entry(file), **({"replace": True} if replace else {}), **_strategy(rolling=rolling)}
    _do("POST", _PATH, str(body["name"]), body, wait=wait, json_=json_)


@app.command("load", epilog=panels.examples("models load"))
def load(
    name: NameArgument,
    reload: Annotated[bool, typer.Option("--reload", help="Also where it is loaded: its files have changed.")] = False,
    rolling: RollingOption = False,
    wait: WaitOption = True,
    json_: JsonOption = False,
) -> None:
    """Load a model."""
    body = {**({"reload": True} if reload else {}), **_strategy(rolling=rolling)}
    _do("POST", f"{_of(name)}/load", name, body, wait=wait, json_=json_)


@app.command("unload", epilog=panels.examples("models unload"))
def unload(name: NameArgument, wait: WaitOption = True, json_: JsonOption = False) -> None:
    """Let a model finish what it has and unload it."""
    _do("POST", f"{_of(name)}/unload", name, {}, wait=wait, json_=json_)


@app.command("remove", epilog=panels.examples("models remove"))
def remove(name: NameArgument, wait: WaitOption = True, json_: JsonOption = False) -> None:
    """Unload a model and forget it; what the workers' configuration has is as that says."""
    _do("DELETE", _of(name), name, None, wait=wait, json_=json_)


@app.command("plan", epilog=panels.examples("models plan"))
def plan(
    names: Annotated[
        list[str] | None,
        typer.Argument(autocompletion=complete.models, help="Models that are known; asks the running workers."),
    ] = None,
    file: Annotated[
        list[str] | None, typer.Option("--file", help="YAML with an entry of `models`; asks the running workers.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="Plan all models of this configuration on this machine instead.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Tell whether models would fit, without loading anything; the exit status is 1 where they do not."""
    if config is not None:
        if names or file:
            api.fail("--config plans on this machine, names and --file ask the workers: give one or the other", 2)
        _plan_here(config, json_=json_)
    asked: list[Any] = [*(names or []), *(_entry(one) for one in file or [])]
    if not asked:
        api.fail("nothing to plan: name models, or give --file or --config", 2)
    data = api.call("POST", f"{_PATH}/plan", body={"models": asked})
    if json_:
        show.as_json(data)
    else:
        for worker in data["workers"]:
            _show_plan(worker)
        show.console.print(show.styled("it fits" if data["fits"] else f"it does not fit: {data['message']}"))
    raise SystemExit(0 if data["fits"] else 1)


@app.command("digest", epilog=panels.examples("models digest"))
def digest(
    folder: Annotated[Path, typer.Argument(help="A model's directory.")], json_: JsonOption = False
) -> None:
    """Print the digest of a model's files, for `digest` in its entry."""
    from services.inference.adapters.digest import IntegrityError, digest_dir

    try:
        found = digest_dir(folder)
    except (IntegrityError, OSError) as exc:
        api.fail(str(exc))
    if json_:
        show.as_json({"path": str(folder), "digest": found})
    else:
        sys.stdout.write(f"{found}\n")


def _of(name: str) -> str:
    # Slashes too: a name may end in /load.
    return f"{_PATH}/{quote(name, safe='/')}"


def _strategy(*, rolling: bool) -> dict[str, Any]:
    return {"strategy": "rolling"} if rolling else {}


def _do(method: str, path: str, name: str, body: dict[str, Any] | None, *, wait: bool, json_: bool) -> NoReturn:
    """Give an order and follow it; ends the command with 1 where it failed."""
    done = api.call(method, path, body=body)
    state, reason = "", ""
    if wait and done["status"] != "unchanged":
        import asyncio

        from services._cli.progress import Follower

        follower = Follower(_of(name), done, quiet=json_)
        try:
            state, reason = asyncio.run(follower.run())
        except KeyboardInterrupt:
            api.fail("not followed any more; it goes on", 130)
    if json_:
        show.as_json({**done, "state": state or None, "reason": reason or None})
    else:
        told = [done["message"]] if done["message"] else []
        words = [f"{name} {state or done['status']}", *([reason] if reason else told)]
        show.console.print(show.styled(": ".join(words)))
    raise SystemExit(1 if state == "failed" else 0)


def _entry(file: str) -> dict[str, Any]:
    """An entry of `models`; relative paths are relative to the file."""
    import yaml
    from pydantic import ValidationError

    from services._runtime.settings_engines import Model

    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        raw = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as exc:
        api.fail(f"{file} cannot be read: {exc}", 2)
    except yaml.YAMLError as exc:
        api.fail(f"{file} is not valid YAML: {exc}", 2)
    if not isinstance(raw, dict) or "name" not in raw:
        api.fail(f"{file} is no entry of `models`: give a mapping with name and engine", 2)
    base = Path.cwd() if file == "-" else Path(file).resolve().parent
    for field in ("path", "adapter"):
        if isinstance(raw.get(field), str) and not Path(raw[field]).is_absolute():
            raw[field] = str(base / raw[field])
    try:
        Model.model_validate(raw)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        api.fail(f"{file}: {f'{where}: ' if where else ''}{first['msg'].removeprefix('Value error, ')}", 2)
    return raw


def _plan_here(config: Path, *, json_: bool) -> NoReturn:
    from services._runtime.server import EXIT_CONFIG, load_or_exit, log_or_exit
    from services.inference.adapters.planner import plan_here

    settings = load_or_exit(config)
    # Where nothing is set up, logs go to stdout, into the JSON that somebody reads.
    log_or_exit("cli", settings)
    if not settings.models:
        api.fail(f"{config}: models: is empty: there is nothing to plan", EXIT_CONFIG)
    found = plan_here(settings).model_dump(mode="json")
    if json_:
        show.as_json(found)
    else:
        _show_plan(found)
    raise SystemExit(0 if found["fits"] else 1)


def _show_plan(found: dict[str, Any]) -> None:
    taken = f"memory {_size(found['used_bytes'])} of {_size(found['limit_bytes'])} taken"
    if found["gpu_limit_bytes"]:
        taken += f", GPU {_size(found['gpu_used_bytes'])} of {_size(found['gpu_limit_bytes'])}"
    holds = f"{found['loaded_models']} of {found['max_models']} models"
    show.console.print(show.styled(f"{found['worker']} (pool {found['pool']}): {taken}, {holds}"))
    rows = [
        {
            "model": need["model"], "fits": "yes" if need["fits"] else "no", "on": need["device"],
            "weights": _size(need["weights_bytes"]), "cache": _size(need["kv_cache_bytes"]),
            "overhead": _size(need["overhead_bytes"]), "in all": _size(need["total_bytes"]),
            "left": _size(need["available_bytes"]), "why": need["message"],
        }
        for need in found["needs"]
    ]  # fmt: skip
    show.rows(rows, ["model", "fits", "on", "weights", "cache", "overhead", "in all", "left", "why"])


def _size(count: int) -> str:
    return f"{count / (1 << 30):.2f} GiB" if count >= 1 << 29 else f"{count / (1 << 20):.0f} MiB"
