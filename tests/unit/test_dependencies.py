"""The recorded versions: they fit what pyproject.toml asks for, and what does not fit is told."""

import json

from packaging.requirements import Requirement

from infra import dependencies
from tests.system import ROOT


def test_the_record_holds_all_that_is_asked_for() -> None:
    recorded = dependencies.read()
    assert len(recorded) > 80
    wanted = dependencies.direct()
    assert len(wanted) > 30
    assert dependencies.problems(wanted, recorded, recorded) == [], "run `make lock` and commit it"


def test_everything_that_is_needed_is_found_with_extras_and_markers() -> None:
    found = dependencies.closure([Requirement("faststream[nats]"), Requirement("uvicorn; python_version < '3'")])
    assert {"faststream", "nats-py", "fast-depends", "pydantic-core"} <= set(found)
    assert "uvicorn" not in found
    assert all("+" not in version for version in dependencies.closure([Requirement("torch")]).values())


def test_what_does_not_fit_is_told() -> None:
    wanted = [Requirement("a>=2,<3"), Requirement("b"), Requirement("c; python_version < '3'")]
    recorded, installed = {"a": "1.0", "d": "1"}, {"a": "1.1", "e": "1"}
    assert dependencies.problems(wanted, recorded, installed) == [
        "a<3,>=2 does not allow the recorded 1.0", "b is not recorded", "a: 1.0 is recorded, 1.1 is installed",
        "d 1 is recorded but not needed", "e 1 is installed but not recorded",
    ]  # fmt: skip
    assert dependencies.problems(wanted, recorded, installed, elsewhere=True)[2:] == ["a: 1.0 is recorded, 1.1 is installed"]


def test_what_pip_audit_tells_is_read_and_its_failure_is_no_clean_bill() -> None:
    bad = {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}
    good, unknown = {"name": "b", "version": "1", "vulns": []}, {"name": "c", "skip_reason": "Dependency not found"}

    def told(*found: object) -> str:
        return json.dumps({"dependencies": found})

    assert dependencies.vulnerabilities(told(bad, good, unknown)) == (["a 1: PYSEC-1, mended in 2"], 2)
    assert dependencies.vulnerabilities(told(good)) == ([], 1)
    for nothing in (told(unknown), told(), "", "ERROR", "[]", "{}"):
        assert dependencies.vulnerabilities(nothing) is None


def test_no_file_of_the_record_names_where_packages_come_from() -> None:
    assert "://" not in (ROOT / "infra" / "requirements.lock").read_text()
