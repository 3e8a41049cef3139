"""The log file: several processes write it, it is replaced before it grows too large, and no line is lost or torn."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from services._runtime.log_file import SharedLogFile
from tests.system import ROOT

WRITER = """
import logging, sys
from pathlib import Path
from services._runtime.log_file import SharedLogFile
handler = SharedLogFile(Path(sys.argv[1]), 4096, 100)
for number in range(1000):
    handler.handle(logging.LogRecord("x", 20, "", 0, f"{sys.argv[2]} {number} " + "x" * 50, (), None))
"""


def line(text: str) -> logging.LogRecord:
    return logging.LogRecord("x", logging.INFO, "", 0, text, (), None)


def test_several_processes_write_one_file_and_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "ab_test.log"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(number)], cwd=ROOT, stderr=subprocess.PIPE)
        for number in range(3)
    ]
    for writer in writers:
        _, said = writer.communicate(timeout=60)
        assert (writer.returncode, said) == (0, b"")
    files = sorted(path.parent.glob("ab_test.log*"))
    assert 20 < len(files) <= 101
    for file in files:
        assert file.stat().st_size <= 4096 + 3 * 70
        assert file.stat().st_mode & 0o777 == 0o600
    found = sorted(tuple(map(int, text.split()[:2])) for file in files for text in file.read_text().splitlines())
    assert found == [(writer, number) for writer in range(3) for number in range(1000)]


def test_only_so_many_are_kept_and_a_file_that_others_moved_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    handler = SharedLogFile(path, 4096, 2)
    for number in range(200):
        handler.handle(line(f"{number} " + "x" * 100))
    assert sorted(file.name for file in tmp_path.glob("log*")) == ["log", "log.1", "log.2"]
    assert path.read_text().splitlines()[-1].startswith("199 ")
    path.rename(tmp_path / "moved")
    handler.handle(line("after the move"))
    path.unlink()
    handler.handle(line("after the removal"))
    assert path.read_text() == "after the removal\n"
    handler.close()


def test_a_file_that_cannot_be_written_any_more_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    handler = SharedLogFile(path, 4096, 2)
    path.unlink()
    path.mkdir()
    handler.handle(line("lost"))
    handler.handle(line("lost"))
    assert capsys.readouterr().err.count(f"{path} cannot be written") == 1
    path.rmdir()
    handler.handle(line("there"))
    assert path.read_text() == "there\n"
    handler.close()


SPEAKER = """
import logging, sys
from pathlib import Path
from services._runtime.settings import ConfigError
from services._runtime.settings_model import Logging
from services._runtime.telemetry import get_logger, setup_logging
try:
    setup_logging("tests", Logging(file=Path(sys.argv[1]), format=sys.argv[2]))
except ConfigError as exc:
    sys.exit(str(exc))
logging.getLogger("anyone").warning("said")
get_logger("own").info("said_too", key="value")
"""


def speak(path: Path, form: str) -> str:
    """What a process says on stderr that logs to the file as well."""
    command = [sys.executable, "-c", SPEAKER, str(path), form]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False).stderr


def test_the_log_goes_to_the_file_as_to_stderr(tmp_path: Path) -> None:
    path = tmp_path / "ab_test.log"
    for text in (speak(path, "auto"), path.read_text()):
        entries = [json.loads(one) for one in text.splitlines()]
        assert [(one["event"], one["level"]) for one in entries] == [("said", "warning"), ("said_too", "info")]
        assert (entries[1]["service"], entries[1]["key"]) == ("tests", "value")
    speak(path, "human")
    assert "said_too" in path.read_text().splitlines()[-1]
    assert "\x1b" not in path.read_text()
    assert f"logging.file: {path / 'x'} cannot be written (File exists): name a file" in speak(path / "x", "auto")
