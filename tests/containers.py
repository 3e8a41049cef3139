"""Images and compose.yaml as the tests read them, and what a container runs as a plain process of this machine."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from services._runtime.server import die_with_parent
from tests.harness import environment
from tests.system import ROOT

DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"
COMPOSE = ROOT / "infra" / "compose.yaml"
PROGRAMS = {"cypria": [sys.executable, "-m", "services.cli"], "python": [sys.executable]}
"""What the programs of the image are here."""


@dataclass
class Image:
    """What a target of the Dockerfile sets, with all that it inherits."""

    env: dict[str, str] = field(default_factory=dict)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    user: str = ""
    copied: list[str] = field(default_factory=list)


def stages() -> dict[str, Image]:
    """Every target by its name."""
    found: dict[str, Image] = {}
    current = Image()
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(None, map(str.strip, text.splitlines())):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            base, _, name = rest.split()
            inherited = found.get(base, Image())
            current = found[name] = Image(
                dict(inherited.env), inherited.entrypoint, inherited.command, inherited.health, inherited.user,
                list(inherited.copied),
            )  # fmt: skip
        elif word == "ENV":
            current.env |= dict(pair.split("=", 1) for pair in rest.split())
        elif word == "ENTRYPOINT":
            current.entrypoint = json.loads(rest)
        elif word == "CMD":
            current.command = json.loads(rest)
        elif word == "HEALTHCHECK":
            current.health = json.loads(rest.split("CMD", 1)[1])
        elif word == "USER":
            current.user = rest
        elif word == "COPY":
            current.copied.append(rest)
    return found


def compose() -> dict[str, Any]:
    """compose.yaml with every variable at its default."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", COMPOSE.read_text())
    return dict(yaml.safe_load(text))


def program(command: list[str]) -> list[str]:
    """The command with this machine's programs."""
    return [*PROGRAMS[command[0]], *command[1:]]


def mounted(service: str, folder: Path) -> dict[str, Path]:
    """Files in a container of compose.yaml, and where they are here; ``folder`` has the secrets."""
    whole = compose()
    found = {}
    for kind in ("configs", "secrets"):
        for one in whole["services"][service].get(kind, []):
            source = one if isinstance(one, str) else one["source"]
            target = f"/run/secrets/{one}" if isinstance(one, str) else one["target"]
            file = whole[kind][source]["file"]
            found[target] = folder / Path(file).name if kind == "secrets" else COMPOSE.parent / file
    for one in whole["services"][service].get("volumes", []):
        if isinstance(one, dict) and one["type"] == "bind":
            found[one["target"]] = COMPOSE.parent / one["source"]
    return found


def here(value: str, files: Mapping[str, Path]) -> str:
    """A value of the environment whose path in the container is one of this machine."""
    return str(files[value]) if value in files else value


class Program:
    """A command of a container as a process, whose output goes to ``log``. It is killed with the test."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path) -> None:
        self.command, self.env, self.log = command, env, log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as sink:
            self.process = subprocess.Popen(
                self.command, env=self.env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
                preexec_fn=lambda: die_with_parent(signal.SIGKILL),
            )  # fmt: skip

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait(15)


class Container(Program):
    """A service of compose.yaml as a process: the image's and its own environment, with ``instead`` over both."""

    def __init__(self, service: str, folder: Path, secrets: Path, instead: Mapping[str, str]) -> None:
        own = compose()["services"][service]
        image = stages()[own["build"]["target"]]
        files = mounted(service, secrets)
        env = {name: here(str(value), files) for name, value in {**image.env, **own["environment"]}.items()}
        del env["PATH"]
        self.service = service
        self.data_dir = folder / service
        self.health = program(image.health)
        super().__init__(
            program([*image.entrypoint, *own["command"]]),
            environment(PYTHONPATH=str(ROOT), **{**env, "CYPRIA_DATA_DIR": str(self.data_dir), **instead}),
            folder / f"{service}.log",
        )

    def healthy(self) -> bool:
        """Whether the image's own health check says so."""
        assert self.process
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        return subprocess.run(self.health, env=self.env, cwd=ROOT, stderr=subprocess.DEVNULL, check=False).returncode == 0

    def told(self) -> dict[str, Any]:
        """Where it listens, as it says itself."""
        assert self.process
        return dict(json.loads((self.data_dir / "run" / f"{self.service}.{self.process.pid}.json").read_text()))
