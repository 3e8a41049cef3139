"""The chart as somebody meets it who installs it for the first time: values, notes, the way in, and what is refused."""

import re
from typing import Any

import helm_python
import pytest
import yaml

from services._runtime.settings_model import Settings
from tests.charts import CHART, NAMESPACE, RELEASE, example, pods, render

VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = yaml.safe_load((CHART / "values.schema.json").read_text())


def notes(values: dict[str, Any]) -> str:
    """What Helm says after the installation."""
    with helm_python.Chart.load(str(CHART)) as chart:
        rendered = chart.render(values, name=RELEASE, namespace=NAMESPACE)
    [text] = [text for name, text in rendered.items() if name.endswith("NOTES.txt")]
    return str(text)


def test_every_value_is_explained_and_in_the_schema() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    for name in VALUES:
        [at] = [number for number, line in enumerate(lines) if line.startswith(f"{name}:")]
        assert lines[at - 1].startswith("# "), name

    def same(values: dict[str, Any], schema: dict[str, Any], where: str) -> None:
        if schema.get("additionalProperties") is False:
            # those of a chart that has this one in it, and what a pool may have of its own
            assert set(values) == set(schema["properties"]) - {"global", "image"} | {"image"} & set(values), where
            for name, value in values.items():
                if isinstance(value, dict):
                    same(value, schema["properties"][name], f"{where}.{name}")

    same(VALUES, SCHEMA, "values")


@pytest.mark.parametrize(
    ("router", "url"),
    [
        ({}, "http://127.0.0.1:2242"),
        ({"tls": {"existingSecret": "edge"}}, "https://127.0.0.1:2242"),
        ({"ingress": {"enabled": True, "host": "ab.company.com"}}, "http://ab.company.com"),
        ({"ingress": {"enabled": True, "host": "ab.company.com", "tlsSecret": "edge"}}, "https://ab.company.com"),
    ],
)
def test_the_notes_tell_where_the_page_is_and_the_first_key(router: dict[str, Any], url: str) -> None:
    text = notes({"router": router})
    assert f"{url}/dashboard" in text
    assert f"export CYPRIA_URL={url}\n" in text
    assert ("port-forward" in text) == ("127.0.0.1" in url)
    assert ("CYPRIA_CA_FILE" in text) == (url == "https://127.0.0.1:2242")
    assert "get secret cypria -o jsonpath='{.data.admin-key}'" in text
    assert "config.models is empty" in text
    assert "config.models" not in notes({"config": {"models": [{"name": "m"}]}})


def test_streams_pass_the_ingress_and_what_needs_no_key_does_not() -> None:
    [one] = [each for each in example("production") if each["kind"] == "Ingress"]
    told = one["metadata"]["annotations"]
    prefix = "nginx.ingress.kubernetes.io"
    assert told[f"{prefix}/proxy-buffering"] == "off"
    assert int(told[f"{prefix}/proxy-read-timeout"]) >= 3600
    assert int(told[f"{prefix}/proxy-body-size"].removesuffix("m")) << 20 > Settings().http.max_body_bytes
    # the edge of this example speaks TLS
    assert told[f"{prefix}/backend-protocol"] == "HTTPS"
    [rule] = one["spec"]["rules"]
    open_to_all = ("/metrics", "/docs", "/openapi.json", "/asyncapi.yaml", "/health", "/ready")
    for path in rule["http"]["paths"]:
        assert not [other for other in open_to_all if f"{other}/".startswith(path["path"].rstrip("/") + "/")]
        assert path["backend"]["service"] == {"name": RELEASE, "port": {"name": "http"}}
    assert one["spec"]["tls"] == [{"hosts": [rule["host"]], "secretName": "cypria-company-com"}]


def test_servers_that_elect_are_apart_where_that_is_wanted() -> None:
    for name, wanted in (("production", "DoNotSchedule"), ("everything", "ScheduleAnyway")):
        for pod in pods(example(name)):
            if pod.component != "provision":
                by_node, by_zone = (one["whenUnsatisfiable"] for one in pod.spec["topologySpreadConstraints"])
                assert by_node == (wanted if pod.component in {"nats", "clickhouse", "keeper"} else "ScheduleAnyway")
                assert by_zone == "ScheduleAnyway"


def test_a_changed_configuration_is_taken_up_and_images_come_from_the_registry_for_all() -> None:
    def stamps(values: dict[str, Any]) -> dict[str, str]:
        found = {}
        for pod in pods(render(values)):
            assert pod.spec.get("imagePullSecrets") == values.get("imagePullSecrets"), pod.component
            found[pod.component] = pod.owner["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        return found

    base = {"clickhouse": {"internal": True}, "imagePullSecrets": [{"name": "registry"}]}
    before = stamps(base)
    ours = {"router", "inference-default", "metrics", "monitor", "alerts", "provision"}
    for change, changed in (
        ({"drainSeconds": 31}, ours),
        ({"nats": {"powerSafe": True}}, {"nats"}),
        ({"clickhouse": {"internal": True, "replicas": 3}}, {"clickhouse", "keeper"}),
    ):
        after = stamps({**base, **change})
        assert {component for component in before if before[component] != after[component]} == changed


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"alerts": {"destinations": [{"type": "slack", "webhook_url": "https://hooks.company.com/T1"}]}}, "webhook_url"),
        ({"integrations": [{"type": "webhook", "url": "https://e.company.com", "secret": "s"}]}, "secret"),
        ({"clickhouse": {"dsn": "clickhouse://u:p@h/d"}}, "clickhouse.dsn"),
        ({"nats": {"password": "p"}}, "nats.password"),
    ],
)
def test_secrets_in_the_open_are_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(helm_python.HelmError, match=re.escape(said)) as refused:
        render({"config": config})
    assert "put them into a Secret" in str(refused.value)
