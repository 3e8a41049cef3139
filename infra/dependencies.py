"""The recorded versions of everything that Cypria is built and tested with, and their audit.

`python -m infra.dependencies lock` records what is installed, `check` compares the record with pyproject.toml and with
what is installed, `audit` does that and asks pip-audit for known vulnerabilities where its data can be had.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "infra" / "requirements.lock"
AUDIT_VENV = ROOT / ".venv-audit"
EXTRAS = ("embedded", "torch", "dev")
RECORDED_ON = (3, 11, "linux", "x86_64")
HEAD = """# What Cypria is built and tested with (Python 3.11, x86_64 Linux); `make install` keeps to it where it can.
# Made by `make lock` from what is installed; `make audit` compares and asks for known vulnerabilities.
"""


def direct(pyproject: Path = ROOT / "pyproject.toml") -> list[Requirement]:
    """What pyproject.toml asks for, those extras included that the tests need."""
    project = tomllib.loads(pyproject.read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in EXTRAS for one in project["optional-dependencies"][extra])]
    return [Requirement(text) for text in wanted]


def closure(requirements: Iterable[Requirement]) -> dict[str, str]:
    """Name and version of all that is installed because of these. Raises PackageNotFoundError where one is not."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(one, "") for one in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        found[name] = Version(metadata.version(name)).public
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                waiting += [(Requirement(text), wanted) for text in metadata.requires(name) or []]
    return dict(sorted(found.items()))


def read(lock: Path = LOCK) -> dict[str, str]:
    """Name and version of each line."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", lock.read_text(), re.MULTILINE))


def problems(
    requirements: list[Requirement], recorded: dict[str, str], installed: dict[str, str], *, elsewhere: bool = False
) -> list[str]:
    """Where the record does not fit what is asked for or what is installed.

    ``elsewhere``: on another Python or machine than that of the record, which may need other packages.
    """
    found = []
    for one in requirements:
        name = canonicalize_name(one.name)
        if one.marker and not one.marker.evaluate({"extra": ""}):
            continue
        if name not in recorded:
            found.append(f"{one} is not recorded")
        elif not one.specifier.contains(recorded[name], prereleases=True):
            found.append(f"{one} does not allow the recorded {recorded[name]}")
    for name in sorted({*recorded, *installed}):
        there, kept = installed.get(name), recorded.get(name)
        if elsewhere and None in {there, kept}:
            continue
        if there is None:
            found.append(f"{name} {kept} is recorded but not needed")
        elif kept is None:
            found.append(f"{name} {there} is installed but not recorded")
        elif there != kept:
            found.append(f"{name}: {kept} is recorded, {there} is installed")
    return list(dict.fromkeys(found))


def check() -> int:
    """Print what does not fit; the exit status."""
    elsewhere = (*sys.version_info[:2], sys.platform, platform.machine()) != RECORDED_ON
    found = problems(direct(), read(), closure(direct()), elsewhere=elsewhere)
    for line in found:
        print(f"dependencies: {line}")
    if found:
        print("dependencies: `make lock` records what is installed; commit it together with its reason")
        return 1
    print(f"dependencies: all {len(read())} as recorded")
    return 0


def vulnerabilities(output: str) -> tuple[list[str], int] | None:
    """(what pip-audit's JSON tells, a line each; how many packages it knows something about).

    None where it is no such JSON, or it knows none of them: it calls that clean.
    """
    try:
        told = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return None
    known = [one for one in told if "skip_reason" not in one]
    if not known:
        return None
    found = [(f"{one['name']} {one['version']}", each) for one in known for each in one.get("vulns", [])]
    lines = [f"{name}: {one['id']}, mended in {', '.join(one['fix_versions']) or 'no version'}" for name, one in found]
    return lines, len(known)


def audit() -> int:
    """Check, then ask pip-audit, in an environment of its own; the exit status."""
    status = check()
    program = AUDIT_VENV / "bin" / "pip-audit"
    if not program.exists():
        python = AUDIT_VENV / "bin" / "python"
        steps = ([sys.executable, "-m", "venv", AUDIT_VENV], [python, "-m", "pip", "install", "-qq", "pip-audit"])
        if any(subprocess.run(step, check=False).returncode for step in steps):
            print("audit: pip-audit cannot be installed here: the record alone was checked")
            return status
    options = ("--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off", "--timeout", "15")
    ask = [program, "--requirement", LOCK, *options]
    done = subprocess.run(ask, capture_output=True, text=True, check=False)
    told = vulnerabilities(done.stdout)
    if told is None:
        print("audit: pip-audit has no data about any package here: the record alone was checked")
        return status
    found, known = told
    for line in found:
        print(f"audit: {line}")
    print(f"audit: {len(found)} known vulnerabilities; data about {known} of {len(read())} packages")
    return 1 if found else status


def lock() -> int:
    """Record what is installed."""
    LOCK.write_text(HEAD + "".join(f"{name}=={version}\n" for name, version in closure(direct()).items()))
    print(f"recorded in {LOCK.relative_to(ROOT)}")
    return 0


COMMANDS = {"lock": lock, "check": check, "audit": audit}

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"usage: python -m infra.dependencies {'|'.join(COMMANDS)}")
    sys.exit(COMMANDS[sys.argv[1]]())
