"""The Dockerfile: clean by hadolint, pinned, not root, and made of what the product says that it needs."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from infra.dependencies import closure
from infra.install_vllm import VLLM
from services._runtime.settings import load
from tests.containers import DOCKERFILE, stages
from tests.harness import environment
from tests.system import ROOT

FINAL = ("service", "worker", "gpu")


def test_hadolint_finds_nothing() -> None:
    program = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([program, "--failure-threshold", "style", DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_the_default_target_is_the_one_for_all_services() -> None:
    assert list(stages())[-1] == "service"


def test_every_image_is_for_a_user_who_is_not_root_and_says_how_to_see_whether_it_lives() -> None:
    for name in FINAL:
        image = stages()[name]
        assert image.user == "10001:10001", name
        assert image.entrypoint == ["cypria"]
        assert image.health[-1] == "services._runtime.probe"
        assert any("/opt/cypria" in line and line.endswith("/opt/cypria") for line in image.copied), name


def test_what_an_image_sets_are_settings() -> None:
    for name in FINAL:
        settings = load(None, {k: v for k, v in stages()[name].env.items() if k.startswith("CYPRIA_")})
        assert settings.http.host == settings.ops.host == "0.0.0.0"
        assert settings.ops.port == 9464
        assert settings.data_dir == Path("/var/lib/cypria")
    assert stages()["gpu"].env["CYPRIA_INFERENCE__VLLM_PYTHON"] == "/opt/vllm/bin/python"


def test_nothing_is_taken_in_whatever_version_there_is() -> None:
    text = DOCKERFILE.read_text()
    bases = [line.split()[1] for line in text.splitlines() if line.startswith("FROM ")]
    assert [base for base in bases if base not in stages() and not re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*", base)] == []
    assert VLLM in subprocess.check_output(
        [sys.executable, "-c", re.search(r"'(from infra\.install_vllm [^']*)'", text)[1]], cwd=ROOT, text=True
    )
    for line in re.findall(r"pip install[^\n]*", text):
        assert "requirements.lock" in line or "==$(python -c" in line, line


def test_only_what_is_built_from_gets_into_the_context() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    assert ignore[1] == "*"
    copied = {word for line in DOCKERFILE.read_text().splitlines() if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]}
    assert copied == allowed
    assert "infra/secrets" in ignore


BLOCKED = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in set(sys.argv[1].split(",")):
            raise ModuleNotFoundError(f"{name} is not in the image", name=name)

sys.meta_path.insert(0, Absent())
import services.cli, services.metrics.provision
import services.alerts.app, services.inference.app, services.metrics.app, services.monitor.app, services.router.app
"""


def test_every_service_starts_with_what_the_image_has() -> None:
    """The target `service` has no extras: neither the embedded parts nor torch, and nothing that only tests need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    there = {*closure([Requirement(text) for text in project["dependencies"]]), "cypria"}
    modules = metadata.packages_distributions()
    absent = [module for module, owners in modules.items() if there.isdisjoint(map(canonicalize_name, owners))]
    assert {"chdb", "torch", "pytest"} <= set(absent)
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, ",".join(absent)], cwd=ROOT, env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
