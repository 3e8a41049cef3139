"""Every command and snippet of the tutorial and of pages that follow it runs, in order, against a running system; `make demo` does its job."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from services._runtime.settings import load
from services.cli import app
from tests.harness import environment
from tests.system import ROOT, System

PAGES = ("docs/python-client.md", "docs/tutorial.md", "docs/models.md", "docs/rollouts.md")
"""Whose snippets run, in this order."""
ALL = [*ROOT.glob("*.md"), *(p for d in ("docs", "services", "infra") for p in (ROOT / d).rglob("*.md"))]
STARTED_BY_THE_FIXTURE = ("make ", "export ", ".venv/bin/cypria up")


def runnable(text: str) -> str:
    """A block without the lines that set up what the fixture has already set up, and with less of a load."""
    lines = [line for line in text.splitlines() if not line.startswith(STARTED_BY_THE_FIXTURE)]
    text = re.sub(r"--seconds \d+", "--seconds 2", "\n".join(lines))
    if "wait" in text:  # for a test that is over soon
        text = re.sub(r"(--duration |test_duration_minutes=)\d+", r"\g<1>0.02", text)
    return text.replace(".venv/bin/cypria", f"{sys.executable} -m services.cli").replace("python3", sys.executable)


def run_block(kind: str, text: str, env: dict[str, str]) -> str:
    command = ["bash", "-euo", "pipefail", "-c", text] if kind == "sh" else [sys.executable, "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    assert '"error"' not in done.stdout, f"{text}\n{done.stdout}"
    return done.stdout


def blocks(page: str) -> list[tuple[str, str]]:
    return re.findall(r"```(sh|python|yaml)\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.timeout(420)  # a shell starts some forty times
async def test_every_snippet_runs_from_top_to_bottom(system: System) -> None:
    env = environment(CYPRIA_URL=system.url, CYPRIA_API_KEY=system.key, PYTHONPATH=str(ROOT))
    # in a thread: the upstreams answer from this loop
    for page in PAGES:
        outputs = [
            await asyncio.to_thread(run_block, kind, runnable(text), env)
            for kind, text in blocks(page)
            if kind != "yaml" and runnable(text).strip()
        ]
        assert len(outputs) >= 5
        assert any("ab_test_" in output for output in outputs)
        if page == "docs/python-client.md":
            assert any("not promoted: 5" in output for output in outputs)
            assert outputs[-2].splitlines()[-1] in {"inconclusive", "keep_a"}
    known = {re.sub(r"{\w+}", "{}", path) for path in (await system.client.get("/openapi.json")).json()["paths"]}
    for page in ALL:
        for path in re.findall(r"/v1/ab-testing/[a-z/{}_-]+", page.read_text()):
            assert re.sub(r"{\w+}", "{}", path) in known, f"{page.relative_to(ROOT)} names {path}, which is not there"


def test_every_linked_page_exists() -> None:
    for page in ALL:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}, which is not there"


def test_every_configuration_in_the_docs_is_one(tmp_path: Path) -> None:
    found = [(page, text) for page in ALL for text in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)]
    assert len(found) >= 10
    for page, text in found:
        file = tmp_path / page.name
        file.write_text(text)
        load(file, {})


def test_pipelines_in_the_docs_are_what_their_services_take(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "python-client.md").read_text()
    found = re.findall(r"`(\.g[\w./-]+\.yml)`.*?```yml\n(.*?)```", page, re.DOTALL)
    kinds = {".github/workflows/canary.yml": "vendor.github-workflows", ".gitlab-ci.yml": "vendor.gitlab-ci"}
    assert {name for name, _ in found} == set(kinds)
    for name, text in found:
        file = tmp_path / Path(name).name
        file.write_text(text)
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", kinds[name], str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_in_the_docs_is_one() -> None:
    known = typer.main.get_command(app).commands
    for page in ALL:
        commands = re.findall(r"(?<!from)(?:`|^|\s|bin/)cypria ([a-z][a-z|-]*)(?: ([a-z]+))?(?=[ `\n])", page.read_text(), re.MULTILINE)
        for names, sub in commands:
            for name in names.split("|"):
                assert name in known, f"{page.relative_to(ROOT)}: cypria {name}"
                below = getattr(known[name], "commands", {})
                assert not below or not sub or sub in below, f"{page.relative_to(ROOT)}: cypria {name} {sub}"


@pytest.mark.timeout(420)
def test_the_demo_does_its_job(tmp_path: Path) -> None:
    env = environment(PYTHONPATH=str(ROOT), TMPDIR=str(tmp_path), COLUMNS="150")
    done = subprocess.run(
        [sys.executable, "-m", "infra.demo", "--healthy-seconds", "5"],
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "both canaries met the fate they deserve" in done.stdout
