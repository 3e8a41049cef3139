"""`cypria units`: all pages as one, and the unit never where others can read it."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from services._cli import api, units


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Bodies of the calls; the edge answers with two pages of one test and one of another."""
    bodies: list[dict[str, Any]] = []
    first = {"test_id": "t1", "unit_hash": "a1", "variant": None, "erased_at": None, "first_seen": "2026-01-01T00:00:00Z",
             "last_seen": "2026-01-02T00:00:00Z", "held": ["seen"], "windows": 2, "facts": []}  # fmt: skip
    second = {**first, "variant": "b", "first_seen": None, "last_seen": "2026-01-03T00:00:00Z", "held": ["seen", "errors"],
              "windows": 3, "facts": [{"at_ms": 1, "kind": "final", "variant": "b"}] * 2}  # fmt: skip
    pages = [
        {"tests": [first], "next": "t1/METRICS/5", "remains": "hashes"}, {"tests": [second], "next": "t2/WINDOWS/0"},
        {"tests": [{**first, "test_id": "t2", "last_seen": None}], "next": None},
    ]  # fmt: skip

    def call(_method: str, _path: str, *, body: dict[str, Any]) -> Any:
        bodies.append(body)
        return pages[len(bodies) - 1]

    monkeypatch.setattr(api, "call", call)
    return bodies


def test_pages_are_put_together_and_nothing_is_lost(asked: list[dict[str, Any]]) -> None:
    done = CliRunner().invoke(units.app, ["export", "--json"], input="user-1\n")
    assert done.exit_code == 0, done.output
    tests = json.loads(done.stdout)["tests"]
    assert [test["test_id"] for test in tests] == ["t1", "t2"]
    assert json.loads(done.stdout)["remains"] == "hashes"
    assert tests[0] == {
        "test_id": "t1", "unit_hash": "a1", "variant": "b", "erased_at": None, "first_seen": "2026-01-01T00:00:00Z",
        "last_seen": "2026-01-03T00:00:00Z", "held": ["seen", "errors"], "windows": 5,
        "facts": [{"at_ms": 1, "kind": "final", "variant": "b"}] * 2,
    }  # fmt: skip
    assert asked == [{"unit": "user-1"} | extra for extra in ({}, {"cursor": "t1/METRICS/5"}, {"cursor": "t2/WINDOWS/0"})]


def test_the_unit_is_what_the_file_holds_but_for_the_end_of_its_line(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    file = tmp_path / "unit"
    file.write_bytes(" kö \r\n".encode())
    assert CliRunner().invoke(units.app, ["erase", "--json", str(file), "--source", "user"]).exit_code == 0
    assert asked[0] == {"unit": " kö ", "source": "user"}
