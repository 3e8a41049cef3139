"""`cypria`: the processes, the control API from a shell, and the load generator.

What only some commands need is imported by them: most ask the edge one question, and would wait longer for the
libraries of a service than for the answer.
"""

import importlib
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from services._cli import (
    alerts,
    api,
    audit,
    complete,
    integrations,
    keys,
    later,
    live,
    models,
    panels,
    record,
    rollout,
    show,
    units,
    waiting,
)
from services._runtime.settings_base import ConfigError

app = typer.Typer(
    name="cypria", no_args_is_help=True, pretty_exceptions_enable=False,
    help="A/B testing and progressive delivery for LLM serving.", epilog=panels.BEGINNING,
)  # fmt: skip

DEMO_CONFIG = Path(__file__).resolve().parent.parent / "infra" / "config" / "demo.yaml"

ConfigOption = Annotated[Path | None, typer.Option("--config", help="The YAML configuration file.")]
TestOption = Annotated[
    str | None,
    typer.Option("--test-id", autocompletion=complete.tests, help="By default the test that was started last."),
]
EndedArgument = Annotated[
    str, typer.Argument(autocompletion=complete.history, help="Of the test, as `cypria history` lists it.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the API's JSON.")]
ReasonOption = Annotated[str | None, typer.Option("--reason", help="Kept in the record.")]


def _tell_version(asked: bool) -> None:
    if asked:
        from services._runtime.version import version

        typer.echo(f"cypria {version()}")
        raise typer.Exit


@app.callback()
def _every_command(
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_tell_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that are no command's."""


def _config(option: Path | None) -> Path | None:
    if option is None and os.environ.get("APHRODITE_AB_TESTING_CONFIG_PATH"):
        return Path(os.environ["APHRODITE_AB_TESTING_CONFIG_PATH"])
    return option


@app.command(epilog=panels.examples("up"), rich_help_panel=panels.RUNNING)
def up(
    config: ConfigOption = None,
    data_dir: Annotated[Path | None, typer.Option("--data-dir", help="Where everything is kept.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65_535, help="Port of the edge; 2242 by default.")
    ] = None,
) -> None:
    """Run the whole system in the foreground on embedded parts."""
    import asyncio

    from services._runtime.server import load_or_exit, log_or_exit
    from services._runtime.up import up as run_up

    path = _config(config) or DEMO_CONFIG
    settings = load_or_exit(path)
    if data_dir is not None:
        settings.data_dir = data_dir.resolve()
    if port is not None:
        settings.http.port = port
    log_or_exit("up", settings)
    raise SystemExit(asyncio.run(run_up(settings, path)))


def _service(name: str) -> None:
    @app.command(
        name, rich_help_panel=panels.RUNNING, epilog=panels.examples(name),
        help=f"Run the {name} service alone (same as python -m services.{name}).",
    )  # fmt: skip
    def command(config: ConfigOption = None) -> None:
        from services._runtime.server import run

        module = importlib.import_module(f"services.{name}.app")
        run(name, module.build_app, _config(config), **getattr(module, "UVICORN_OPTIONS", {}))


for _name in ("router", "inference", "metrics", "monitor"):
    _service(_name)
app.add_typer(alerts.app, name="alerts", rich_help_panel=panels.TELLING)
app.add_typer(models.app, name="models", rich_help_panel=panels.KEEPING)
app.add_typer(keys.app, name="keys", rich_help_panel=panels.KEEPING)
app.add_typer(audit.app, name="audit", rich_help_panel=panels.KEEPING)
app.add_typer(integrations.app, name="integrations", rich_help_panel=panels.TELLING)
app.add_typer(units.app, name="units", rich_help_panel=panels.KEEPING)


@app.command(epilog=panels.examples("provision"), rich_help_panel=panels.RUNNING)
def provision(
    config: ConfigOption = None,
    json_: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Create or migrate NATS streams, KV buckets and ClickHouse tables; idempotent."""
    import asyncio

    from services._runtime.data_dir import StartError
    from services._runtime.server import EXIT_CONFIG, load_or_exit, log_or_exit
    from services._runtime.up import provision as run_provision
    from services.metrics.provision import FAILURES, provision_clickhouse

    settings = load_or_exit(_config(config))
    log_or_exit("provision", settings)
    if not settings.nats.servers:
        api.fail("nats.servers is not set: name them; `cypria up` provisions its own embedded server", EXIT_CONFIG)
    try:
        with show.working("the bus: streams, buckets"):
            asyncio.run(run_provision(settings))
    except StartError as exc:
        api.fail(str(exc), exc.status)
    try:
        privacy = settings.privacy
        with show.working("ClickHouse: tables, views"):
            done = provision_clickhouse(
                settings.clickhouse_dsn(), privacy.retention_days, privacy.min_group_size, settings.clickhouse.tls,
                settings.clickhouse.cluster,
            )
    except ConfigError as exc:
        api.fail(str(exc), EXIT_CONFIG)
    except FAILURES as exc:
        api.fail(f"ClickHouse was not provisioned: {exc}")
    if json_:
        show.as_json({"done": done})
        return
    for line in done:
        show.console.print(line)


@app.command(epilog=rollout.EXAMPLES, rich_help_panel=panels.TESTS)
def start(
    model_a: Annotated[str, typer.Argument(autocompletion=complete.models, help="The stable model.")],
    model_b: Annotated[str, typer.Argument(autocompletion=complete.models, help="The canary.")],
    split: Annotated[float | None, typer.Option("--split", help="Percent of traffic to B.")] = None,
    duration: Annotated[float | None, typer.Option("--duration", help="Minutes; then it is decided.")] = None,
    auto_rollback: Annotated[
        bool, typer.Option("--auto-rollback/--no-auto-rollback", help="Or verdicts only alert.")
    ] = True,
    ramp: Annotated[
        str | None, typer.Option("--ramp", metavar="SHARES", help="Rising percentages of B, such as 1,5,25,50.")
    ] = None,
    soak: Annotated[float | None, typer.Option("--soak", help="Minutes at each step of the ramp, at least.")] = None,
    gate: Annotated[
        str | None, typer.Option("--gate", help="What each step needs besides: none, statistical (default) or manual.")
    ] = None,
    min_requests: Annotated[
        int | None, typer.Option("--min-requests", help="Requests of B at each step of the ramp, at least.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="Criteria and ramp: conservative or aggressive.")
    ] = None,
    change_type: Annotated[
        str | None,
        typer.Option(
            "--change-type",
            help="Duration and split by what B changes: bug_fix, performance_optimization, model_update or "
            "architecture_change.",
        ),
    ] = None,
    guardrail: Annotated[
        list[str] | None,
        typer.Option(
            "--guardrail", metavar="METRIC=MARGIN:ACTION",
            help="Such as ttft=15:pause; margin in percent; action: warn, pause, step_down or rollback (default). "
            "May be given several times.",
        ),
    ] = None,
    primary_metric: Annotated[
        str | None,
        typer.Option(
            "--primary-metric",
            help="What B must be better in to be promoted: latency (default), ttft, cost, error_rate, thumbs, "
            "conversion or score.",
        ),
    ] = None,
    max_retries: Annotated[int | None, typer.Option("--max-retries", help="Retries after steps down.")] = None,
    backoff: Annotated[
        float | None, typer.Option("--backoff", help="Minutes before the first retry; doubles each time.")
    ] = None,
    min_duration: Annotated[
        float | None, typer.Option("--min-duration", help="Minutes before which nothing is promoted.")
    ] = None,
    schedule: Annotated[str | None, typer.Option("--schedule", help="Start then (RFC 3339).")] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", metavar="NAME=VALUE", help="Kept with the test. May be given often.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the verdict; the exit status tells it (see `cypria wait --help`).")
    ] = False,
    timeout: waiting.TimeoutOption = None,
    json_: JsonOption = False,
) -> None:
    """Start a test of MODEL_B against MODEL_A, at one split or up a ramp."""
    patience = waiting.seconds(timeout)
    if timeout and not wait:
        raise typer.BadParameter("there is nothing to wait for: give --wait as well", param_hint="--timeout")
    body = _body(
        model_a=model_a, model_b=model_b, traffic_split_percent=split, test_duration_minutes=duration,
        auto_rollback=auto_rollback, ramp=rollout.ramp(ramp, soak, gate, min_requests), preset=preset,
        change_type=change_type, guardrails=[rollout.guardrail(text) for text in guardrail or []] or None,
        primary_metric=primary_metric, retry=rollout.retry(max_retries, backoff), min_duration_minutes=min_duration,
        schedule=schedule, tags=rollout.tags(tag),
    )  # fmt: skip
    started = api.call("POST", "/v1/ab-testing/start", body=body)
    if wait:
        waiting.wait(str(started["test_id"]), patience, json_=json_)
    _done(started, json_)


@app.command(epilog=panels.examples("status"), rich_help_panel=panels.TESTS)
def status(test_id: TestOption = None, json_: JsonOption = False) -> None:
    """Show the running test and both variants' figures."""
    data = api.call("GET", "/v1/ab-testing/status", params={"test_id": test_id})
    _ = data["test_id"]  # null where nothing runs
    show.as_json(data) if json_ else show.status(data)


@app.command(epilog=panels.examples("stop"), rich_help_panel=panels.TESTS)
def stop(test_id: TestOption = None, reason: ReasonOption = None, json_: JsonOption = False) -> None:
    """Stop a test and show its decision."""
    with show.working("deciding on all that has been seen"):
        data = api.call("POST", "/v1/ab-testing/stop", body=_body(test_id=test_id, reason=reason))
    show.as_json(data) if json_ else show.result(data)


@app.command(epilog=panels.examples("rollback"), rich_help_panel=panels.TESTS)
def rollback(
    test_id: TestOption = None,
    reason: ReasonOption = None,
    speed: Annotated[str | None, typer.Option("--speed", help="immediate (default) or gradual.")] = None,
    at: Annotated[str | None, typer.Option("--at", help="Then instead of now (RFC 3339).")] = None,
    json_: JsonOption = False,
) -> None:
    """Take the canary out, now or at a time, at once or in steps that the stable model can take."""
    body = _body(test_id=test_id, reason=reason, speed=speed, at=at)
    _done(api.call("POST", "/v1/ab-testing/rollback", body=body), json_)


@app.command(epilog=panels.examples("pause"), rich_help_panel=panels.TESTS)
def pause(test_id: TestOption = None, json_: JsonOption = False) -> None:
    """Pause a test: its split stays, and nothing goes up by itself; a rollback still happens."""
    _done(api.call("POST", "/v1/ab-testing/pause", body=_body(test_id=test_id)), json_)


@app.command(epilog=panels.examples("resume"), rich_help_panel=panels.TESTS)
def resume(test_id: TestOption = None, json_: JsonOption = False) -> None:
    """Resume a paused test; the present step of a ramp soaks anew."""
    _done(api.call("POST", "/v1/ab-testing/resume", body=_body(test_id=test_id)), json_)


@app.command(epilog=panels.examples("approve"), rich_help_panel=panels.TESTS)
def approve(test_id: TestOption = None, json_: JsonOption = False) -> None:
    """Open the manual gate of the ramp's present step."""
    _done(api.call("POST", "/v1/ab-testing/approve", body=_body(test_id=test_id)), json_)


@app.command(epilog=panels.examples("split"), rich_help_panel=panels.TESTS)
def split(
    percent: Annotated[float, typer.Argument(help="0 to 100, in steps of 0.01.")],
    test_id: TestOption = None,
    json_: JsonOption = False,
) -> None:
    """Set the percentage of traffic that B gets."""
    body = _body(test_id=test_id, traffic_split_percent=percent)
    _done(api.call("PATCH", "/v1/ab-testing/traffic-split", body=body), json_)


@app.command(epilog=panels.examples("history"), rich_help_panel=panels.PAST)
def history(
    limit: Annotated[int, typer.Option("--limit", help="So many at most.")] = 20,
    offset: Annotated[int, typer.Option("--offset", help="Leave out so many of the newest.")] = 0,
    json_: JsonOption = False,
) -> None:
    """List ended tests, newest first."""
    data = api.call("GET", "/v1/ab-testing/history", params={"limit": limit, "offset": offset})
    if json_:
        show.as_json(data)
    else:
        show.rows(data["tests"], ["test_id", "status", "decision", "end_time", "reason"])


@app.command(epilog=panels.examples("doctor"), rich_help_panel=panels.TRYING)
def doctor(
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Of the system on this machine; CYPRIA_DATA_DIR by default.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="Look at this configuration file alone; nothing needs to run.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Look at everything that must be in order, and say what to do; the exit status is 1 where something failed."""
    from services._cli import doctor as examination

    with show.working("looking at everything"):
        checks = examination.examine_file(config) if config else examination.examine(data_dir or api.data_dir())
    if json_:
        show.as_json(examination.as_data(checks))
    else:
        show.rows(examination.as_data(checks)["checks"], ["name", "state", "detail", "remedy"])
    raise SystemExit(examination.exit_status(checks))


@app.command(epilog=panels.examples("report"), rich_help_panel=panels.PAST)
def report(
    test_id: EndedArgument,
    html: Annotated[Path | None, typer.Option("--html", help="Write the report there as one HTML file.")] = None,
    json_: JsonOption = False,
) -> None:
    """Show the decision report of a test."""
    if json_:
        show.as_json(record.report(test_id))
    elif html is not None:
        html.write_text(record.rendered(test_id, "text/html"), encoding="utf-8")
        show.console.print(f"written to {html}", soft_wrap=True)
    else:
        show.markdown(record.rendered(test_id, "text/markdown"))


@app.command(epilog=panels.examples("replay"), rich_help_panel=panels.PAST)
def replay(test_id: EndedArgument, json_: JsonOption = False) -> None:
    """Derive a test's verdict anew from the stored evidence; exit 1 if it differs, 2 if it cannot be derived."""
    data = record.replay(test_id)
    if json_:
        show.as_json(data)
    else:
        show.replay(data)
    raise SystemExit(record.exit_status(data))


waiting.register(app)
later.register(app)
live.register(app)


def _body(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _done(data: dict[str, Any], json_: bool) -> None:
    _ = data["status"]  # whatever answers without one is no edge
    if json_:
        show.as_json(data)
    else:
        show.console.print("  ".join(f"{name} [bold]{value}[/bold]" for name, value in data.items()))


def main() -> None:
    """Entry point of the console script.

    Exit status: 0 done; 1 refused, not reached, or not as hoped for; 2 called wrongly; 78 a bad configuration. Who
    waits for a verdict has those of `waiting` as well.
    """
    try:
        app()
    except api.ApiError as exc:
        api.fail(str(exc))


if __name__ == "__main__":
    main()
