"""Traces: off unless they are set, sampled as the caller or the ratio says, and never in the way of a stop."""

import subprocess
import sys

import pytest

from services._runtime import tracing
from services._runtime.clock import monotonic
from services._runtime.settings_telemetry import Traces as Settings
from tests.harness import environment
from tests.system import ROOT

NOBODY = "http://127.0.0.1:9/v1/traces"
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_where_they_are_off_nothing_that_makes_or_sends_spans_is_imported() -> None:
    assert tracing.build("router", Settings()) is None
    look = (
        "import sys, services.router.app, services.inference.app\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", look], capture_output=True, text=True, cwd=ROOT, env=environment(PYTHONPATH=str(ROOT)),
        timeout=120, check=True,
    )  # fmt: skip
    # faststream imports the API, which does nothing by itself
    assert done.stdout == "[]\n"


async def test_the_callers_decision_counts_before_the_ratio_and_a_dead_collector_holds_up_no_stop() -> None:
    all_of_them = tracing.Traces("router", Settings(endpoint=NOBODY, sample_ratio=1))
    none_of_them = tracing.Traces("router", Settings(endpoint=NOBODY, sample_ratio=0))
    for traces in (all_of_them, none_of_them):
        assert traces.begin("x", f"00-{TRACE}-{SPAN}-00", "server", monotonic()) is None
        # flags and fields of versions to come are no reason to refuse a context
        for mine in (f"00-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-03-what-comes"):
            span = traces.begin("x", mine, "server", monotonic())
            assert span is not None
            assert tracing.header(span)[:36] == f"00-{TRACE}-"
            assert SPAN not in tracing.header(span)
            traces.end(span, monotonic(), {"a": 1, "b": ""})
    strangers = ("", f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE.upper()}-{SPAN}-01")
    for other in strangers:
        assert none_of_them.begin("x", other, "server", monotonic()) is None
        fresh = all_of_them.begin("x", other, "server", monotonic())
        assert fresh is not None
        assert TRACE not in tracing.header(fresh)
        all_of_them.end(fresh, monotonic(), {})
    await all_of_them.stop()
    await none_of_them.stop()


@pytest.mark.parametrize("endpoint", ["collector:4318", "grpc://c:4317", "http://user:word@c:4318/v1/traces"])
def test_an_endpoint_is_an_address(endpoint: str) -> None:
    with pytest.raises(ValueError, match="such as http://127"):
        Settings(endpoint=endpoint)
