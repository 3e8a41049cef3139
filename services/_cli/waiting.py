"""`cypria start --wait` and `cypria wait`: follow a test to its verdict, with an exit status for a pipeline."""

import contextlib
import re
import sys
import time
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from services._cli import api, complete, panels, show

if TYPE_CHECKING:
    from cypria import Status, Verdict

STATUSES = {"promote_b": 0, "rollback": 3, "keep_a": 4, "inconclusive": 5}
"""By decision; what else a command may end with is in `main`."""
TIMED_OUT, INTERRUPTED = 124, 130
EXAMPLES = """
The exit status is the verdict: 0 promote_b, 3 rollback, 4 keep_a, 5 inconclusive; 1 an error, 124 no verdict within \
--timeout (the test goes on), 130 interrupted (likewise). Examples:

\b
  cypria wait ab_test_01a216392387b1f58787
  cypria wait ab_test_01a216392387b1f58787 --timeout 2h --json
"""
_TIMES = re.compile(r"(?:(\d{1,4})d)?(?:(\d{1,5})h)?(?:(\d{1,6})m)?(?:(\d{1,7})s)?")
_UNITS = (86_400, 3600, 60, 1)

TestArgument = Annotated[str, typer.Argument(autocompletion=complete.tests, help="As `cypria status` names it.")]
TimeoutOption = Annotated[
    str | None, typer.Option("--timeout", metavar="TIME", help="Wait so long at most, such as 30m, 2h or 1h30m.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the verdict as JSON; progress goes to stderr.")]


def register(app: typer.Typer) -> None:
    """Add it to the command line."""

    @app.command("wait", epilog=EXAMPLES, rich_help_panel=panels.TESTS)
    def command(test_id: TestArgument, timeout: TimeoutOption = None, json_: JsonOption = False) -> None:
        """Wait until a test has ended; the exit status tells its verdict."""
        wait(test_id, seconds(timeout), json_=json_)


def seconds(text: str | None) -> float | None:
    """``1h30m`` as seconds. Raises BadParameter for what is no time, or none at all."""
    if text is None:
        return None
    found = _TIMES.fullmatch(text.strip())
    given = sum(int(part) * unit for part, unit in zip(found.groups(), _UNITS, strict=True) if part) if found else 0
    if not given:
        raise typer.BadParameter(f"'{text}' is no time: give one such as 90s, 30m, 2h or 1h30m", param_hint="--timeout")
    return float(given)


def wait(test_id: str, timeout: float | None, *, json_: bool) -> NoReturn:
    """Follow a test until it has ended, show its verdict, and end the command with the verdict's status."""
    from cypria import CypriaError, NoVerdictYet

    try:
        verdict = _followed(test_id, timeout)
    except NoVerdictYet as exc:
        api.fail(f"{exc} (`cypria wait {test_id}`, `cypria stop --test-id {test_id}`)", TIMED_OUT)
    except KeyboardInterrupt:
        api.fail(
            f"{test_id} is not waited for any more and goes on (`cypria wait {test_id}`, "
            f"`cypria stop --test-id {test_id}`)", INTERRUPTED,
        )  # fmt: skip
    except CypriaError as exc:
        api.fail(str(exc))
    if json_:
        show.as_json({
            "test_id": verdict.test_id, "decision": verdict.decision, "promoted": verdict.promoted,
            "status": verdict.test.status, "reason": verdict.reason, "rule": verdict.rule, "result": verdict.test.raw,
        })  # fmt: skip
    else:
        show.console.print(show.styled(f"{verdict.test_id}: {verdict.decision}: {verdict.reason}"), soft_wrap=True)
        show.console.print(show.styled(f"the whole report: cypria report {verdict.test_id}"), soft_wrap=True)
    raise SystemExit(STATUSES.get(verdict.decision, STATUSES["inconclusive"]))


def _followed(test_id: str, timeout: float | None) -> "Verdict":
    """Progress on stderr: one line that is kept up where somebody watches, else a line for each change."""
    client, console = api.client(), show.wide(stderr=True)
    if not sys.stderr.isatty():  # pipelines like to force colours, and keep every line that is drawn

        def tell(status: "Status") -> None:
            console.print(show.styled(f"{time.strftime('%H:%M:%S')} {status}"), soft_wrap=True)

        return client.wait_for_verdict(test_id, timeout, on_progress=tell)
    end = None if timeout is None else time.monotonic() + timeout
    with console.status(f"waiting for {test_id}") as line, contextlib.closing(client.follow(test_id, timeout)) as looks:
        for status in looks:
            line.update(show.styled(str(status)))
        left = None if end is None else max(1.0, end - time.monotonic())
        return client.wait_for_verdict(test_id, left)  # it has ended: this asks for its result
