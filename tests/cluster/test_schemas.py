"""What cluster/ renders to is valid for Kubernetes and KubeRay, also by the operator's rules that no schema has."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.cluster.manifests import (
    CLUSTER,
    KUSTOMIZATIONS,
    OVERLAYS,
    Document,
    cluster_spec,
    find_document,
    is_ray_resource,
    load_documents,
    render_folder,
)

KUBERNETES_VERSION = "1.37"
Validate = Callable[[Document], list[str]]


def test_overlays_have_all_resources() -> None:
    kinds = {
        "Namespace/instruct-ray", "PersistentVolumeClaim/instruct-ray-shared", "NetworkPolicy/ray",
        "NetworkPolicy/endpoint", "RayCluster/instruct-ray", "RayJob/instruct-ray-pipeline", "RayJob/instruct-ray-tune",
        "RayService/incidents",
    }  # fmt: skip
    for overlay in OVERLAYS:
        names = {f"{document['kind']}/{document['metadata']['name']}" for document in load_documents(overlay)}
        # One replica of the overlay cpu would stop every node drain.
        assert names == (kinds if overlay == "overlays/cpu" else kinds | {"PodDisruptionBudget/endpoint"})


@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_core_resources_are_valid(folder: str) -> None:
    documents = [document for document in load_documents(folder) if not is_ray_resource(document)]
    for document in documents:
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
    assert documents


def test_invalid_core_resource_is_rejected() -> None:
    document = deepcopy(find_document(load_documents("mlflow"), "Deployment", "mlflow"))
    document["spec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="volumeMount"):
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_resources_match_their_definitions(validate_ray_resource: Validate, overlay: str) -> None:
    resources = [document for document in load_documents(overlay) if is_ray_resource(document)]
    assert [validate_ray_resource(resource) for resource in resources] == [[]] * 4


@pytest.mark.parametrize(
    ("path", "key", "value", "message"),
    [
        ([], "rayversion", "2.60.0", "'rayversion' was unexpected"),
        (["workerGroupSpecs", 0], "maxReplica", 4, "'maxReplica' was unexpected"),
        (["headGroupSpec", "template", "spec", "containers", 0], "volumeMount", [], "'volumeMount' was unexpected"),
        (["headGroupSpec", "template", "spec"], "containers", {}, "{} is not of type 'array'"),
        (["workerGroupSpecs", 0], "replicas", "two", "'two' is not of type 'integer'"),
        (["authOptions"], "mode", "tokens", "'tokens' is not one of"),
    ],
)
def test_invalid_ray_resource_is_rejected(
    validate_ray_resource: Validate, path: list[str | int], key: str, value: object, message: str
) -> None:
    document = deepcopy(find_document(load_documents("overlays/gpu"), "RayJob", "instruct-ray-tune"))
    target: Any = document["spec"]["rayClusterSpec"]
    for part in path:
        target = target[part]
    target[key] = value
    [error] = validate_ray_resource(document)
    assert message in error


@pytest.mark.parametrize("component", ["efa", "incremental-upgrade", "infiniband", "kueue", "tls"])
def test_components_that_no_overlay_has_are_valid(
    validate_ray_resource: Validate, component: str, tmp_path: Path
) -> None:
    # Paths must be relative.
    up = Path(*[".."] * len(tmp_path.parts[1:]))
    kustomization = {
        "resources": [str(up / (CLUSTER / "overlays/gpu").relative_to("/"))],
        "components": [str(up / (CLUSTER / "components" / component).relative_to("/"))],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    documents = list(yaml.safe_load_all(render_folder(tmp_path)))
    assert documents != load_documents("overlays/gpu")
    for document in documents:
        if is_ray_resource(document):
            assert validate_ray_resource(document) == []
            check_operator_rules(document)
        else:
            kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_operator_accepts_what_no_schema_checks(overlay: str) -> None:
    for document in load_documents(overlay):
        if is_ray_resource(document):
            check_operator_rules(document)


def check_operator_rules(document: Document) -> None:
    """Rules of KubeRay 1.7 in ray-operator/controllers/ray/utils/validation.go."""
    spec = cluster_spec(document)
    is_autoscaled = spec.get("enableInTreeAutoscaling", False)
    assert is_autoscaled == (spec.get("autoscalerOptions", {}).get("version") == "v2")
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        # Of autoscaler v2 alone.
        assert is_autoscaled or not {"priority", "idleTimeoutSeconds"} & group.keys()
        start_params = group["rayStartParams"].keys()
        assert not (group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & start_params)
        assert "labels" not in start_params
    pods = [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
    assert all(pod["spec"].get("restartPolicy", "Never") == "Never" for pod in pods)
    if document["kind"] == "RayJob":
        check_deletion_rules(document["spec"], is_autoscaled=is_autoscaled)


def check_deletion_rules(job: Document, *, is_autoscaled: bool) -> None:
    """Either rules or a time to live; no DeleteWorkers beside an autoscaler; workers go no later than the cluster."""
    rules = job.get("deletionStrategy", {}).get("deletionRules", [])
    assert bool(rules) != job.get("shutdownAfterJobFinishes", False)
    seconds: dict[str, dict[str, int]] = {}
    for rule in rules:
        condition = dict(rule["condition"])
        ttl = condition.pop("ttlSeconds")
        [status] = condition.values()
        [key] = condition
        assert status == ("Failed" if key == "jobDeploymentStatus" else status.upper())
        assert rule["policy"] not in seconds.setdefault(f"{key}={status}", {})
        seconds[f"{key}={status}"][rule["policy"]] = ttl
        assert rule["policy"] != "DeleteWorkers" or not is_autoscaled
    assert all(ttls.get("DeleteWorkers", 0) <= ttls["DeleteCluster"] for ttls in seconds.values())
    assert not rules or len(seconds) == 3
