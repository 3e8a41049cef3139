"""The chart as the tests read it: rendered by Helm's own library, and what its containers run with."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import yaml

from tests.containers import stages
from tests.system import ROOT

CHART = ROOT / "infra" / "helm" / "cypria"
EXAMPLES = {path.stem: path for path in sorted((ROOT / "infra" / "helm" / "examples").glob("*.yaml"))}
RELEASE, NAMESPACE = "prod", "llm"
OURS = ("router", "inference", "metrics", "monitor", "alerts", "provision")
DISCOVERY = {"metadata.name": "{pod}", "metadata.labels['apps.kubernetes.io/pod-index']": "{index}"}


def render(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Every object. Raises HelmError for values that the chart refuses."""
    with helm_python.Chart.load(str(CHART)) as chart:
        chart.validate_schema(values)
        rendered = chart.render(values, name=RELEASE, namespace=NAMESPACE)
    texts = [text for name, text in rendered.items() if name.endswith(".yaml")]
    return [one for text in texts for one in yaml.safe_load_all(text) if one]


@cache
def example(name: str) -> list[dict[str, Any]]:
    """Objects of one of the examples; ``default`` is the chart without values."""
    return render({} if name == "default" else yaml.safe_load(EXAMPLES[name].read_text()))


@dataclass
class Pod:
    """A pod of the release: its component and its specification."""

    owner: dict[str, Any]
    component: str
    spec: dict[str, Any]
    labels: dict[str, str]

    @property
    def container(self) -> dict[str, Any]:
        [one] = self.spec["containers"]
        return dict(one)

    @property
    def replicas(self) -> int:
        return int(self.owner["spec"].get("replicas", 1))

    def environment(self, index: int = 0) -> dict[str, str]:
        """The variables of one of the pods, with those of the image under them. Of a Secret's value: ``secret:KEY``."""
        found: dict[str, str] = {}
        for one in self.container.get("env", []):
            source = one.get("valueFrom", {})
            if "secretKeyRef" in source:
                found[one["name"]] = f"secret:{source['secretKeyRef']['key']}"
            elif "fieldRef" in source:
                name = f"{self.owner['metadata']['name']}-{index}"
                found[one["name"]] = DISCOVERY[source["fieldRef"]["fieldPath"]].format(pod=name, index=index)
            else:
                found[one["name"]] = re.sub(r"\$\((\w+)\)", lambda name: found[name[1]], str(one["value"]))
        return {**(stages()["service"].env if self.component.split("-")[0] in OURS else {}), **found}

    def files(self, objects: list[dict[str, Any]], secrets: Path) -> dict[str, Path | str]:
        """Files of the container by their path: a ConfigMap's content, or where the Secret's key is in ``secrets``."""
        volumes = {one["name"]: one for one in self.spec["volumes"]}
        maps = {one["metadata"]["name"]: one["data"] for one in objects if one["kind"] == "ConfigMap"}
        found: dict[str, Path | str] = {}
        for mount in self.container["volumeMounts"]:
            volume = volumes.get(mount["name"], {})
            if "configMap" in volume:
                for key, text in maps[volume["configMap"]["name"]].items():
                    path = mount["mountPath"] if mount.get("subPath") == key else f"{mount['mountPath']}/{key}"
                    found[path] = text
            keys = [item for source in volume.get("projected", {}).get("sources", []) for item in source["secret"]["items"]]
            keys += volume.get("secret", {}).get("items", [])
            found |= {f"{mount['mountPath']}/{item['path']}": secrets / item["key"] for item in keys}
        return found


def pods(objects: list[dict[str, Any]]) -> Iterator[Pod]:
    """Every pod that the objects make."""
    for one in objects:
        if template := one.get("spec", {}).get("template"):
            labels = template["metadata"]["labels"]
            yield Pod(one, labels["app.kubernetes.io/component"], template["spec"], labels)
