"""All that is made from the code is as the code has it, and one list names whatever makes something."""

import re

import pytest

from infra import generate
from tests.system import ROOT


def test_everything_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"]) == 0, capsys.readouterr().err


def test_a_misspelt_check_is_refused_by_each_and_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--chek"]) == 2
    assert capsys.readouterr().err.count("usage: python -m ") == len(generate.MAKERS)


def test_the_list_has_every_module_that_makes_files() -> None:
    folders = [ROOT / name for name in ("schemas", "services", "infra", "cypria", "benchmarks")]
    making = {path for folder in folders for path in folder.rglob("*.py") if re.search(r"\bbring_up_to_date\(arguments", path.read_text())}
    assert {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in making} | {"schemas.generate"} == set(generate.MAKERS)
    assert "python -m infra.generate --check" in (ROOT / "Makefile").read_text()
