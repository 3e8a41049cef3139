"""What the command line says when something is wrong before or on the way to the edge."""

import errno
import io
import os
import ssl
import subprocess
import sys
from http.client import BadStatusLine, RemoteDisconnected
from pathlib import Path

import aiohttp
import pytest

from cypria import Client
from cypria.errors import SettingsError
from services._cli import api, units
from tests.fakes.edge import Edge
from tests.system import ROOT


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_edge_that_is_not_there_is_told_in_words(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [one for one in os.environ if one.startswith("CYPRIA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CYPRIA_URL", f"{scheme}://127.0.0.1:9")
    monkeypatch.setenv("CYPRIA_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("CYPRIA_API_KEY", "some-key")
    with pytest.raises(SystemExit):
        api.call("GET", "/v1/ab-testing/status")
    said = capsys.readouterr().err
    assert f"no answer from {scheme}://127.0.0.1:9 (no connection: Connection refused)" in said
    assert "object at" not in said
    assert "is `cypria up` running?" in said


def test_a_connection_that_ends_after_a_certificate_was_shown_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYPRIA_URL", "https://127.0.0.1:9")
    monkeypatch.setenv("CYPRIA_CERT_FILE", "mine.crt")
    monkeypatch.setenv("CYPRIA_KEY_FILE", "mine.key")
    for lost in (
        aiohttp.ServerDisconnectedError(), aiohttp.ClientOSError(errno.ECONNRESET, "Connection reset by peer"),
        RemoteDisconnected("closed without response"), ssl.SSLEOFError(8, "EOF occurred in violation of protocol"),
    ):  # fmt: skip
        assert "the certificate in CYPRIA_CERT_FILE may not be" in api.explained(lost)


def test_an_edge_over_tls_that_is_asked_without_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYPRIA_URL", "http://127.0.0.1:9")
    for lost in (BadStatusLine("\x15\x03"), ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")):
        assert "if it serves TLS, CYPRIA_URL begins with https://" in api.explained(lost)


@pytest.mark.parametrize("given", ["edge:1", "http://me:word@edge:1", "http://a..b", "ftp://edge", "http://edge:0x", "http://"])
def test_an_address_is_one_for_the_command_line_as_for_the_client(
    given: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CYPRIA_URL", given)
    with pytest.raises(SystemExit) as ended:
        api.url()
    with pytest.raises(SettingsError) as refused:
        Client(api_key="k")
    assert ended.value.code == 2
    assert f"url ({capsys.readouterr().err.removeprefix('cypria: ').strip()}".replace("CYPRIA_URL", "CYPRIA_URL)", 1) == str(refused.value)


def test_an_argument_that_is_not_utf_8_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    edge = Edge()
    monkeypatch.setenv("CYPRIA_URL", edge.url)
    monkeypatch.setenv("CYPRIA_API_KEY", "k")
    try:
        with pytest.raises(SystemExit):
            api.call("GET", "/v1/ab-testing/status", params={"test_id": "a\udcff"})
    finally:
        edge.close()
    assert "an argument is not UTF-8" in capsys.readouterr().err
    assert edge.seen == []


def test_a_question_to_the_edge_does_not_wait_for_the_libraries_of_a_service() -> None:
    heavy = {"aiohttp", "faststream", "nats", "uvicorn", "numpy", "prometheus_client", "structlog"}
    code = f"import sys, services.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_a_unit_that_is_not_utf_8_is_refused_before_it_is_sent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"user-\xff"), errors="surrogateescape"))
    with pytest.raises(SystemExit):
        units.export()
    assert "the unit is not UTF-8 (byte 6): give it as requests bring it" in capsys.readouterr().err
