"""Children come back, stop in order, and never outlive their supervisor."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from services._runtime.server import EXIT_CONFIG
from services._runtime.supervisor import Child, Supervisor, service_child
from tests.harness import alive, eventually
from tests.system import ROOT

SLEEPER = [sys.executable, "-c", "import signal; signal.pause()"]


async def test_a_killed_child_comes_back_and_a_stopped_one_does_not() -> None:
    supervisor = Supervisor()
    child = Child("sleeper", SLEEPER, os.environ)
    await supervisor.start([child])
    try:
        assert child.process
        first = child.process.pid
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: child.process and child.process.pid != first and child.process.returncode is None)
    finally:
        await supervisor.stop()
    assert child.process.returncode is not None
    assert child.restarts == 1


async def test_a_child_that_ignores_sigterm_is_killed() -> None:
    stubborn = [
        sys.executable,
        "-c",
        "import signal,sys; signal.signal(15, signal.SIG_IGN); print(1, flush=True); signal.pause()",
    ]
    supervisor = Supervisor()
    child = Child("stubborn", stubborn, os.environ, stop_s=0.3)
    await supervisor.start([child])
    await supervisor.stop()
    assert child.process
    assert child.process.returncode in {-signal.SIGKILL, -signal.SIGTERM}


async def test_refused_configuration_is_reported_not_retried() -> None:
    supervisor = Supervisor()
    child = Child("picky", [sys.executable, "-c", f"raise SystemExit({EXIT_CONFIG})"], os.environ)
    await supervisor.start([child])
    async with asyncio.timeout(60):
        assert await supervisor.wait_for_refusal() == "picky"
    assert child.restarts == 0
    await supervisor.stop()


async def test_children_die_with_a_supervisor_that_is_killed_even_stopped_ones(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import asyncio, os, sys\n"
        "from services._runtime.supervisor import Child, Supervisor\n"
        "async def main():\n"
        "    s = Supervisor()\n"
        "    ignore = 'import signal; signal.signal(15, signal.SIG_IGN); signal.pause()'\n"
        "    group = [Child(str(i), [sys.executable, '-c', ignore], os.environ) for i in range(2)]\n"
        "    await s.start(group)\n"
        "    print('PID', *(c.process.pid for c in group), flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert parent.stdout
    pids = next([int(word) for word in line.split()[1:]] for line in parent.stdout if line.startswith(b"PID"))
    os.kill(pids[0], signal.SIGSTOP)
    parent.kill()
    parent.wait(10)
    for pid in pids:
        await eventually(lambda p=pid: not alive([p]))


def test_a_service_is_this_code_whatever_lies_where_it_was_started(tmp_path: Path) -> None:
    (tmp_path / "services").mkdir()
    (tmp_path / "services" / "__init__.py").write_text("raise SystemExit('another package of that name')")
    child = service_child("router", 0, config=None, settings={})
    python = child.command[: child.command.index("-m")]
    done = subprocess.run(
        [*python, "-c", "import services; print(services.__file__)"],
        capture_output=True, text=True, cwd=tmp_path, env=dict(child.environment), check=False,
    )  # fmt: skip
    assert done.stdout.strip() == str(ROOT / "services" / "__init__.py"), done.stderr
