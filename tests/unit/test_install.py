"""`make install` knows a whole environment from one that was moved, broken or left half done."""

import subprocess
import sys
from pathlib import Path

import pytest

from infra import install


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """An environment as `python -m venv` makes it; its pip is but a name."""
    made = tmp_path / "project" / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made], check=True)
    (install.site(made) / "pip.py").touch()
    (made / "bin" / "pip").write_text(f"#!{made}/bin/python3\n")
    return made


def test_a_whole_environment_is_left_alone(venv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (venv / install.STAMP).write_text(install.fingerprint(venv))
    assert install.usable(venv)
    install.install(venv)
    assert capsys.readouterr().out == f"{venv} is complete\n"


def test_a_moved_environment_is_not_usable(venv: Path, tmp_path: Path) -> None:
    moved = venv.parent.rename(tmp_path / "elsewhere") / ".venv"
    assert not install.usable(moved)
    assert install.fingerprint(moved) != install.fingerprint(venv)


@pytest.mark.parametrize("lost", ["bin/python", "bin/pip", "pyvenv.cfg"])
def test_an_environment_that_lost_a_part_is_not_usable(venv: Path, lost: str) -> None:
    (venv / lost).unlink()
    assert not install.usable(venv)


def test_an_environment_without_its_packages_is_not_usable(venv: Path) -> None:
    (install.site(venv) / "pip.py").unlink()
    assert not install.usable(venv)
    assert not install.usable(venv.parent / "none")


def test_half_installed_packages_are_removed(tmp_path: Path) -> None:
    whole, half, left = tmp_path / "a-1.dist-info", tmp_path / "b-1.dist-info", tmp_path / "~c"
    for folder in (whole, half, left):
        folder.mkdir()
        (folder / "METADATA").touch()
    (whole / "RECORD").touch()
    install.drop_halves(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [whole.name]


def test_progress_is_shown_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "LOG_EVERY_S", 0.0)
    progress = install.Progress(tmp_path)
    progress.unpack(2)
    (tmp_path / "a-1.dist-info").mkdir()
    with progress.shown():
        for _ in range(200):
            if "unpacking package 1 of 2" in capsys.readouterr().out:
                return
            install.time.sleep(0.05)
    pytest.fail("no progress was shown")


def test_without_a_cpu_build_of_torch_the_default_one_is_taken_and_said(
    venv: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def pip(_venv: Path, _progress: install.Progress, arguments: list[str]) -> tuple[int, list[str]]:
        asked.append(" ".join(arguments[2:]))
        return int("+cpu" in arguments[2]), ["no matching distribution"]

    monkeypatch.setattr(install, "pip", pip)
    cpu = f"torch=={install.TORCH}+cpu"
    monkeypatch.delenv("TORCH_INDEX", raising=False)
    install.install_torch(venv, install.Progress(install.site(venv)))
    assert asked == [cpu, f"torch=={install.TORCH}"]
    assert "may be several GB (set TORCH_INDEX" in capsys.readouterr().out
    asked.clear()
    monkeypatch.setenv("TORCH_INDEX", "https://index.example/cpu")
    install.install_torch(venv, install.Progress(install.site(venv)))
    assert asked == [cpu, f"{cpu} --index-url https://index.example/cpu", f"torch=={install.TORCH}"]


def test_without_a_network_it_says_what_to_set(venv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tail = ["WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'", "ERROR: No matching distribution"]
    with pytest.raises(SystemExit, match="running it again goes on from here"):
        install.must((1, tail))
    assert "set PIP_INDEX_URL or HTTPS_PROXY" in capsys.readouterr().err


def test_make_help_names_every_target() -> None:
    text = (install.ROOT / "Makefile").read_text()
    targets = text.split(".PHONY:")[1].splitlines()[0].split()
    said = subprocess.run(["make", "--no-print-directory", "help"], cwd=install.ROOT, capture_output=True, text=True, check=True).stdout
    assert [one for one in targets if one != "help" and one not in said.split()] == []


def test_pips_own_words_are_shown_when_it_fails(venv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (install.site(venv) / "pip.py").write_text(
        "print('Collecting x'); print('ERROR: no space left'); raise SystemExit(1)"
    )
    progress = install.Progress(install.site(venv))
    with pytest.raises(SystemExit, match="running it again goes on from here"):
        install.must(install.pip(venv, progress, ["install", "x"]))
    assert progress.doing == "collecting x"
    assert "ERROR: no space left" in capsys.readouterr().err


def test_recorded_versions_are_taken_and_others_only_where_those_cannot_be_had(
    venv: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    gone = False

    def pip(_venv: Path, _progress: install.Progress, arguments: list[str]) -> tuple[int, list[str]]:
        asked.append(str(install.LOCK) in arguments)
        return int(asked[-1] and gone), ["ERROR: No matching distribution found for x==1"]

    monkeypatch.setattr(install, "pip", pip)
    for gone, expected in ((False, [True]), (True, [True, False])):  # noqa: B007 - pip looks at it
        asked.clear()
        install.install_project(venv, install.Progress(install.site(venv)))
        assert asked == expected
    assert "requirements.lock cannot be had here (ERROR: No matching distribution found for x==1)" in capsys.readouterr().out
