"""The resources for the operator of Prometheus are valid, and select what KubeRay makes.

prometheus-operator-0.93.json holds the schemas of its CRDs (Apache License 2.0), without descriptions and with
`additionalProperties: false`: the API server drops a key that it does not know, and `kubectl apply` refuses it.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft4Validator

from tests.cluster.monitoring.prometheus_server import MONITORING

SCHEMAS = json.loads(Path(__file__).with_name("prometheus-operator-0.93.json").read_text())
KUSTOMIZATION = yaml.safe_load((MONITORING / "kustomization.yaml").read_text())
RESOURCES = [one for name in KUSTOMIZATION["resources"] for one in yaml.safe_load_all((MONITORING / name).read_text())]
MONITORS = {one["metadata"]["name"]: one["spec"] for one in RESOURCES if one["kind"] == "PodMonitor"}


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda one: one["metadata"]["name"])
def test_resource_matches_its_definition(resource: dict[str, Any]) -> None:
    validator = Draft4Validator(SCHEMAS[resource["kind"]])
    assert [error.message for error in validator.iter_errors(resource)] == []
    [error] = validator.iter_errors(resource | {"spec": resource["spec"] | {"selektor": {}}})
    assert "'selektor' was unexpected" in error.message


def test_monitors_select_the_pods_and_ports_of_kuberay() -> None:
    """KubeRay labels all pods so, and names the port `metrics` itself; the other two are ports of the head."""
    labels = {name: spec["selector"]["matchLabels"] for name, spec in MONITORS.items()}
    assert labels == {"ray-head": {"ray.io/node-type": "head"}, "ray-workers": {"ray.io/node-type": "worker"}}
    ports = {name: [one["port"] for one in spec["podMetricsEndpoints"]] for name, spec in MONITORS.items()}
    assert ports == {"ray-head": ["metrics", "as-metrics", "dash-metrics"], "ray-workers": ["metrics"]}


def test_files_of_the_kustomization_exist() -> None:
    names = [
        *KUSTOMIZATION["resources"],
        *(name for one in KUSTOMIZATION["configMapGenerator"] for name in one["files"]),
    ]
    assert [name for name in names if not (MONITORING / name).is_file()] == []
