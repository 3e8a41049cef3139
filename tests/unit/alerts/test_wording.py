"""Templates fill in facts and do nothing else; a link leads to the report."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.template import NAMES, problem
from schemas.v1.alerts import Alert
from services._runtime.settings_model import Settings
from services.alerts.domain.letter import letter
from services.alerts.domain.pagerduty import event_body
from services.alerts.domain.render import log_fields, slack_body
from services.alerts.domain.wording import Wording, report_url
from services.alerts.settings import read


def alert(**fields: Any) -> Alert:
    return Alert.model_validate(
        {"incident": "t1.slow", "level": "CRITICAL", "title": "Too slow", "message": "p95 is 4 s", "at_ms": 0,
         "test_id": "t1", "rule": "critical_latency_ms", "value": 4000.5, "tags": {"model_b": "llama"},
         "numbers": {"n_a": 3}, **fields}
    )  # fmt: skip


def test_a_template_names_facts_of_the_alert_and_what_is_missing_is_a_dash() -> None:
    wording = Wording(
        "[$state] $title of ${tags.model_b}", "$message: $value at n_a ${numbers.n_a}, bound $bound, $$5, ${tags.x}",
        "https://cypria.company.com/",
    )  # fmt: skip
    words = wording.of(alert())
    assert words.headline == words.title == "[CRITICAL] Too slow of llama"
    assert words.text == "p95 is 4 s: 4000.5 at n_a 3, bound -, $5, -"
    assert wording.of(alert(resolved=True)).headline.startswith("[RESOLVED]")
    everything = Wording(" ".join(f"${{{name}}}" for name in sorted(NAMES)), None, "https://x").of(alert())
    assert "https://x/v1/ab-testing/tests/t1/report" in everything.title


def test_what_a_template_lacks_is_the_alerts_own() -> None:
    only_text = Wording(None, "see $report_url").of(alert(test_id=None))
    assert (only_text.title, only_text.headline, only_text.text) == ("Too slow", "CRITICAL: Too slow", "see -")
    assert Wording("$title", None).of(alert()).text == "p95 is 4 s"


@given(st.text(max_size=60), st.text(max_size=60))
def test_text_from_outside_is_never_a_template(title: str, message: str) -> None:
    words = Wording("$title", "$message").of(alert(title=title, message=message))
    assert (words.title, words.text) == (title, message)


@pytest.mark.parametrize(
    "text", ["${title.__class__}", "$nobody", "100 $ more", "${tags}", "${message.format}", "$Title", "${}", "$tags.model_b$"]
)
def test_what_is_no_fact_is_refused_at_the_start_with_the_names_there_are(text: str) -> None:
    assert problem(text)
    with pytest.raises(ValueError, match=r"name") as caught:
        Settings.model_validate({"alerts": {"destinations": [{"type": "log", "text": text}]}})
    assert "alerts.destinations.0.text" in str(caught.value)


@pytest.mark.parametrize(
    ("destination", "words"),
    [
        ({"type": "webhook", "url": "https://x", "secret": "s", "title": "x"}, "'title' is no setting of"),
        ({"type": "prometheus", "pushgateway_url": "http://x", "text": "x"}, "'text' is no setting of"),
        ({"type": "pagerduty", "integration_key": "k", "group_seconds": 5}, "'group_seconds' is no setting of"),
        ({"type": "slack", "webhook_url": "https://x", "group_seconds": 0}, "group_seconds"),
    ],
)
def test_what_is_read_by_machines_takes_no_templates_and_groups(destination: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="destinations") as caught:
        Settings.model_validate({"alerts": {"destinations": [destination]}})
    assert words in str(caught.value)


@pytest.mark.parametrize("url", ["cypria", "ftp://x", "https://user:word@cypria.company.com"])
def test_a_public_url_is_an_address_without_a_password(url: str) -> None:
    with pytest.raises(ValueError, match="public_url") as caught:
        Settings.model_validate({"alerts": {"public_url": url}})
    assert "user:word" not in str(caught.value).split("input_value")[0]


def test_every_channel_that_people_read_has_the_words_and_the_link() -> None:
    settings = Settings.model_validate({
        "alerts": {"public_url": "https://c", "destinations": [{"type": "log", "title": "T $rule", "text": "<b> $title"}]},
    })  # fmt: skip
    words = read(settings, {}).channels[0].wording.of(alert())
    link = "https://c/v1/ab-testing/tests/t1/report"
    slack = str(slack_body(alert(), "e", None, words))
    assert "T critical_latency_ms" in slack
    assert f"<{link}|Decision report>" in slack
    assert "&lt;b&gt; Too slow" in slack
    written = letter(alert(), "e", words)
    assert written.subject == "[Cypria] T critical_latency_ms"
    assert link in written.text
    assert f'<a href="{link}">' in written.html
    assert "&lt;b&gt;" in written.html
    event = event_body(alert(), "e", "k", None, words)
    assert event["payload"]["summary"] == "T critical_latency_ms"
    assert event["links"] == [{"href": link, "text": "Decision report"}]
    fields = log_fields(alert(), "e", words)
    assert (fields["title"], fields["report"]) == ("T critical_latency_ms", link)


def test_an_address_is_made_of_a_test_id_whatever_it_holds() -> None:
    assert report_url("https://c", "a/../b?x") == "https://c/v1/ab-testing/tests/a%2F..%2Fb%3Fx/report"
    assert report_url("https://c", None) is report_url(None, "t1") is None
