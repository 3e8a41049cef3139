"""What `alerts.destinations` takes: the spec's entry as it stands, every snippet of docs/alerts.md, and nothing doubtful."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from schemas.v1.alerts import Alert
from services._runtime.settings import ConfigError, load
from services._runtime.settings_alerts import KEYS
from services._runtime.settings_model import Settings
from services.alerts.app import build_app
from services.alerts.domain.board import Board
from services.alerts.domain.digest import digest
from services.alerts.domain.letter import letter
from services.alerts.domain.pagerduty import event_body
from services.alerts.settings import read
from services.router.control.config_view import masked

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "alerts.md").read_text()
SNIPPETS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
SPEC = """
alerts:
  destinations:
    - type: slack
      webhook_url: https://hooks.slack.com/services/...
      channel: "#ml-ops-alerts"

    - type: email
      recipients: ["ml-team@company.com"]
      smtp_server: smtp.company.com

    - type: pagerduty
      integration_key: "your-pagerduty-key"
      severity_mapping:
        CRITICAL: "error"
        EMERGENCY: "critical"

    - type: prometheus
      pushgateway_url: http://pushgateway:9091
      job_name: "aphrodite-ab-testing"
"""


def one(**destination: Any) -> Settings:
    return Settings.model_validate({"alerts": {"destinations": [destination]}})


def test_the_specs_destinations_are_taken_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    channels = read(load(path, {}), {}).channels
    assert [channel.name for channel in channels] == ["slack", "email", "pagerduty", "prometheus"]
    assert [channel.route.min_level for channel in channels] == ["INFO", "INFO", "WARNING", "INFO"]
    asked = read(one(type="pagerduty", integration_key="k", min_level="INFO"), {}).channels[0]
    assert asked.route.min_level == "INFO"


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_every_example_of_the_page_is_a_configuration(snippet: str, tmp_path: Path) -> None:
    path = tmp_path / "alerts.yaml"
    path.write_text(snippet)
    assert read(load(path, {}), dict.fromkeys(re.findall(r"_env: (\w+)", snippet), "https://x")).channels


def test_the_page_shows_every_type_and_the_service_can_be_built_with_all_of_them(tmp_path: Path) -> None:
    entries = [entry for text in SNIPPETS for entry in yaml.safe_load(text)["alerts"]["destinations"]]
    assert {entry["type"] for entry in entries} == set(KEYS)
    usable = [
        {key: value for key, value in entry.items() if key not in {"name", "ca_file"} and not key.endswith("_env")}
        for entry in entries
    ]
    for entry in usable:
        missing: dict[str, dict[str, str]] = {
            "slack": {} if "webhook_url" in entry else {"token": "t"},
            "email": {"password": "p"} if "username" in entry else {},
            "pagerduty": {"integration_key": "k"},
            "webhook": {"secret": "s"},
        }
        entry.update(missing.get(entry["type"], {}))
    settings = Settings.model_validate({"data_dir": str(tmp_path), "alerts": {"destinations": usable}})
    settings.nats.servers = ["nats://127.0.0.1:1"]
    assert build_app(settings)


@pytest.mark.parametrize(
    ("destination", "words"),
    [
        ({"type": "slack", "channel": "#x"}, "webhook_url"),
        ({"type": "slack", "token": "t"}, "channel"),
        ({"type": "slack", "webhook_url": "https://x", "token": "t", "channel": "c"}, "not both"),
        ({"type": "slack", "webhook_url": "https://x", "webhook_url_env": "X"}, "not both"),
        ({"type": "slack", "webhook_url": "https://x", "recipients": ["a@b.c"]}, "'recipients' is no setting of"),
        ({"type": "log", "from": "a@b.c"}, "'from' is no setting of"),
        ({"type": "email", "smtp_server": "x"}, "recipients"),
        ({"type": "email", "recipients": [], "smtp_server": "x"}, "empty list"),
        ({"type": "email", "recipients": ["team"], "smtp_server": "x"}, "no address"),
        ({"type": "email", "recipients": ["a@b.c\nBcc: d@e.f"], "smtp_server": "x"}, "no address"),
        ({"type": "email", "recipients": ["a@b.c"]}, "smtp_server"),
        ({"type": "email", "recipients": ["a@b.c"], "smtp_server": "x", "username": "u"}, "password"),
        ({"type": "email", "recipients": ["a@b.c"], "smtp_server": "x", "tls": True, "starttls": True}, "not both"),
        ({"type": "email", "recipients": ["a@b.c"], "smtp_server": "x", "username": "u", "password": "p",
          "starttls": False}, "in the clear"),
        ({"type": "pagerduty"}, "integration_key"),
        ({"type": "pagerduty", "integration_key": "k", "severity_mapping": {"CRITICAL": "bad"}}, "severity_mapping"),
        ({"type": "pagerduty", "integration_key": "k", "severity_mapping": {"WORST": "error"}}, "severity_mapping"),
        ({"type": "prometheus", "pushgateway_url": "pushgateway:9091"}, "pushgateway_url"),
        ({"type": "webhook", "url": "https://x"}, "secret"),
        ({"type": "webhook", "secret": "s"}, "url"),
        ({"type": "apprise"}, "url"),
        ({"type": "sms"}, "type"),
        ({"type": "log", "messages_per_minute": 0}, "messages_per_minute"),
        ({"type": "log", "repeat_interval_seconds": 0}, "repeat_interval_seconds"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_by_name(destination: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "alerts.yaml"
    path.write_text(yaml.safe_dump({"alerts": {"destinations": [destination]}}))
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert words in str(caught.value)
    assert "alerts.destinations.0" in str(caught.value)


def test_a_missing_variable_and_a_url_that_is_none_are_named() -> None:
    with pytest.raises(ConfigError, match=r"destinations\.0\.token_env.*TOKEN"):
        read(one(type="slack", channel="c", token_env="TOKEN"), {})
    with pytest.raises(ConfigError, match=r"destinations\.0\.url.*https"):
        read(one(type="webhook", url="ftp://hidden", secret="s"), {})


def test_no_secret_is_shown_by_the_configuration_or_a_channel() -> None:
    entries = [
        {"type": "slack", "webhook_url": "https://hush"}, {"type": "slack", "name": "b", "token": "hush", "channel": "c"},
        {"type": "email", "recipients": ["a@b.c"], "smtp_server": "x", "username": "u", "password": "hush"},
        {"type": "pagerduty", "integration_key": "hush", "url": "https://hush"},
        {"type": "prometheus", "pushgateway_url": "http://u:hush@x"},
        {"type": "webhook", "url": "https://hush", "secret": "hush"}, {"type": "apprise", "url": "json://hush"},
    ]  # fmt: skip
    settings = Settings.model_validate({"alerts": {"destinations": entries}})
    shown = json.dumps(masked(settings))
    assert "hush" not in shown
    assert "a@b.c" in shown
    channels = read(settings, {}).channels
    assert "hush" not in repr([channel for channel in channels if channel.type != "prometheus"])


def alert(**fields: Any) -> Alert:
    return Alert.model_validate(
        {"incident": "i", "level": "WARNING", "title": "Slow", "message": "m", "at_ms": 5, **fields}
    )


def test_a_digest_has_the_worst_first_and_says_how_many() -> None:
    assert digest([alert()]) == alert()
    many = digest([alert(), alert(level="CRITICAL", title="Down", at_ms=9), *[alert(title=f"n{n}") for n in range(30)]])
    assert (many.level, many.at_ms, many.numbers) == ("CRITICAL", 9, {"alerts": 32})
    assert "Down" in many.title
    assert "and 12 more" in many.message
    assert digest([alert(resolved=True), alert()]).resolved is False


def test_the_board_counts_notifications_and_forgets_the_longest_silent_test() -> None:
    board = Board()
    for number in range(250):
        board.add(alert(test_id=f"t{number}"))
    assert len(board.tests) == 200
    assert "t0" not in board.tests
    board.add(alert(test_id="t249", incident="j", level="INFO"))
    board.add(alert(test_id="t249", resolved=True, level="INFO", at_ms=77))
    last = board.tests["t249"]
    assert (last.totals["WARNING"], last.totals["INFO"], last.active, last.last_ms) == (1, 1, set(), 77)


def test_letters_and_events_are_within_their_limits_whatever_an_alert_says() -> None:
    wild = alert(title="a\r\n\x00" * 500, message="<script>" * 500, incident="\u20ac" * 400)
    written = letter(wild, "e1")
    assert len(written.subject) <= 200
    assert written.subject.isprintable()
    assert "<script>" not in written.html
    body = event_body(wild, "e1", "k")
    assert len(body["payload"]["summary"]) <= 1024
    assert len(body["dedup_key"]) <= 255
    assert event_body(alert(resolved=True), "e2", "k") == {
        "routing_key": "k", "dedup_key": "cypria.i", "event_action": "resolve"
    }  # fmt: skip
