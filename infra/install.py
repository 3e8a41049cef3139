"""`make install`: a virtual environment with everything, made once and mended when it is broken.

Runs on the system's Python alone. Says what it does while it does it, on a terminal and in a log alike; run again
it returns at once, goes on after an interruption, and makes anew an environment that was moved or that lost its
Python. Usage: python3 infra/install.py [VENV]
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

TORCH = "2.13.0"
TORCH_INDEX = "TORCH_INDEX"
"""The variable that may name an index with torch's CPU builds, for where pip's own sources have none."""

EXTRAS = "embedded,torch,dev"
OLDEST = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "infra" / "requirements.lock"
STAMP = ".installed"
LOG_EVERY_S = 10.0
TAIL = 40
"""Lines of pip's output that are shown when it fails."""
INSTALL = ("install", "--no-compile")
USED = (
    "services.inference.adapters.transformers_engine",
    "services.cli, services.router.app, services.metrics.app, services.monitor.app, services.alerts.app, openai",
)
"""What is imported once, by two processes, so that it is compiled: compiling all 17,000 files would take a minute."""


def fingerprint(venv: Path, *files: Path) -> str:
    """What an installation depends on: the folder, Python, and the files that say what to install."""
    content = hashlib.sha256()
    for file in (*(files or (ROOT / "pyproject.toml", LOCK)), Path(__file__)):
        content.update(file.read_bytes())
    return f"{venv} {sys.version_info.major}.{sys.version_info.minor} {content.hexdigest()}"


def usable(venv: Path) -> bool:
    """Whether the environment runs, is of this Python, has pip, and has not been moved since it was made."""
    python = venv / "bin" / "python"
    check = "import sys, pip; print(*sys.version_info[:2], sys.prefix != sys.base_prefix)"
    try:
        done = subprocess.run([python, "-c", check], capture_output=True, text=True, timeout=60, check=False)
        head = (venv / "bin" / "pip").read_bytes()[:1024]
    except (OSError, subprocess.TimeoutExpired):
        return False
    # Scripts begin with the path of their Python: in a moved folder they would run another one, or none.
    return done.stdout.split() == [*map(str, sys.version_info[:2]), "True"] and os.fsencode(python) in head


def drop_halves(site: Path) -> None:
    """Remove what an interrupted pip left: a distribution without RECORD counts as installed, but is not."""
    for found in (*site.glob("~*"), *(info for info in site.glob("*.dist-info") if not (info / "RECORD").exists())):
        shutil.rmtree(found) if found.is_dir() else found.unlink()


class Progress:
    """One line that is rewritten on a terminal; a line now and then where the output goes elsewhere."""

    def __init__(self, site: Path) -> None:
        self._site = site
        self._began = time.monotonic()
        self._told = 0.0
        self._stop = threading.Event()
        self._live = sys.stdout.isatty()
        self.doing = ""
        self.packages = 0
        """How many are being unpacked, once that is known."""
        self._before = 0

    def say(self, text: str) -> None:
        """A line that stays."""
        print(("\r\033[K" if self._live else "") + text, flush=True)
        self._told = time.monotonic()

    def unpack(self, packages: int) -> None:
        """From now on packages are written to disk."""
        self._before, self.packages = self._installed(), packages

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show what is being done until the block ends."""
        self._stop.clear()
        thread = threading.Thread(target=self._show, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
            self.packages = 0

    def _show(self) -> None:
        while not self._stop.wait(0.3):
            now = time.monotonic()
            doing = self.doing
            if self.packages:
                doing = f"unpacking package {max(0, self._installed() - self._before)} of {self.packages}"
            line = f"{now - self._began:4.0f} s  {doing}"
            if self._live:
                print(f"\r\033[K{line[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
            elif now - self._told > LOG_EVERY_S:
                self.say(line)
        if self._live:
            print("\r\033[K", end="", flush=True)

    def _installed(self) -> int:
        return sum(1 for _ in self._site.glob("*.dist-info"))


def pip(venv: Path, progress: Progress, arguments: list[str]) -> tuple[int, list[str]]:
    """Run pip; its exit status and the end of its output."""
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PYTHONUNBUFFERED": "1"}
    tail: collections.deque[str] = collections.deque(maxlen=TAIL)
    with subprocess.Popen(
        [venv / "bin" / "python", "-m", "pip", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            text = line.strip()
            tail.append(text)
            if text.startswith("Installing collected packages:"):
                progress.unpack(text.count(",") + 1)
            elif text.startswith(("Collecting", "Downloading", "Obtaining", "Preparing", "Building")):
                progress.doing = text[0].lower() + text[1:]
    return process.returncode, list(tail)


def installed(venv: Path, name: str) -> str:
    """The version of a distribution in the environment, empty when it is not there."""
    return next((found.version for found in importlib.metadata.distributions(name=name, path=[str(site(venv))])), "")


def install_torch(venv: Path, progress: Progress) -> None:
    """Put in torch's CPU build; the default build if no source has it."""
    if installed(venv, "torch") or install_torch_cpu(venv, progress):
        return
    progress.say(
        f"no CPU build of torch {TORCH} was found; taking the default one, which may be several GB "
        f"(set {TORCH_INDEX} to an index that has CPU builds to be spared it)"
    )
    must(pip(venv, progress, [*INSTALL, f"torch=={TORCH}"]))


def install_torch_cpu(venv: Path, progress: Progress) -> bool:
    """Put in torch's CPU build, from pip's own sources or else the index that TORCH_INDEX names; whether one had it."""
    progress.doing = "looking for torch's CPU build"
    places = [[], ["--index-url", os.environ[TORCH_INDEX]]] if os.environ.get(TORCH_INDEX) else [[]]
    return any(pip(venv, progress, [*INSTALL, f"torch=={TORCH}+cpu", *where])[0] == 0 for where in places)


def install_project(venv: Path, progress: Progress) -> None:
    """Put in the project and its packages, in the recorded versions; where one is not to be had, in allowed ones."""
    project = [*INSTALL, "--editable", f".[{EXTRAS}]"]
    status, tail = pip(venv, progress, [*project, "--constraint", str(LOCK)])
    if status:
        said = next((line for line in tail if line.startswith("ERROR:")), "pip failed")
        progress.say(f"the versions in {LOCK.name} cannot be had here ({said}): taking others that are allowed")
        must(pip(venv, progress, project))


def must(result: tuple[int, list[str]]) -> None:
    """Exit with the end of pip's output when it failed."""
    status, tail = result
    if status:
        print("\n".join(tail), file=sys.stderr)
        if any("connection broken" in line for line in tail):
            print("pip reaches no index: see to the network, or set PIP_INDEX_URL or HTTPS_PROXY", file=sys.stderr)
        sys.exit("installing failed, see above; running it again goes on from here")


def site(venv: Path) -> Path:
    """Where an environment of this Python has its packages."""
    return venv / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def prepare(venv: Path) -> None:
    """An environment that works, made or mended; without what an interruption left half done."""
    if not usable(venv):
        if venv.exists():
            print("the environment there is broken, moved or of another Python: making it anew", flush=True)
            shutil.rmtree(venv)
        if subprocess.run([sys.executable, "-m", "venv", venv], check=False).returncode:
            sys.exit("python3 cannot make a virtual environment: see above (on Debian: apt-get install python3-venv)")
    drop_halves(site(venv))


def install(venv: Path) -> None:
    """Make or mend ``venv`` and install the project into it, with all that its tests need."""
    stamp, wanted = venv / STAMP, fingerprint(venv)
    if stamp.exists() and stamp.read_text() == wanted and usable(venv):
        print(f"{venv} is complete", flush=True)
        return
    began = time.monotonic()
    print(f"installing into {venv}, once; a few minutes, of which torch is the largest part", flush=True)
    stamp.unlink(missing_ok=True)
    prepare(venv)
    progress = Progress(site(venv))
    with progress.shown():
        install_torch(venv, progress)
        progress.packages = 0
        progress.doing = "resolving the other packages"
        install_project(venv, progress)
        progress.packages = 0
        progress.doing = "checking"
        must(pip(venv, progress, ["check"]))
        progress.doing = "importing everything once"
        imports = [subprocess.Popen([venv / "bin" / "python", "-c", f"import {used}"], cwd=ROOT) for used in USED]
        if sum(process.wait() != 0 for process in imports):
            sys.exit("what was installed cannot be imported, see above")
    stamp.write_text(wanted)
    print(f"installed in {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    """Install, or say what is missing."""
    if sys.version_info < OLDEST:
        sys.exit(
            f"Cypria needs Python >= 3.11; {sys.executable} is {sys.version.split()[0]}: make PYTHON=python3.12 ..."
        )
    try:
        install(Path(os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else ".venv")))  # noqa: PTH100 - keep links
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; running it again goes on from here")


if __name__ == "__main__":
    main()
