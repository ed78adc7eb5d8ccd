"""Pods: security, secrets, volumes, a graceful end, images, and what they share with each other."""

import re
import tomllib
from collections.abc import Iterator

import pytest
import yaml

from tests.cluster.manifests import (
    CLUSTER,
    KUSTOMIZATIONS,
    OVERLAYS,
    ROOT,
    Document,
    all_pods,
    cluster_spec,
    find_document,
    is_ray_resource,
    iter_pods,
    load_documents,
    num_gpus,
    render,
)

DRAIN_TIMEOUT = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
FILES = [path for path in sorted(CLUSTER.rglob("*")) if path.is_file()]


def pinned_version(package: str) -> str:
    """The version of a package that pyproject.toml pins."""
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [version] = [m[1] for m in (re.fullmatch(rf"{package}(?:\[.*\])?==(\S+)", line) for line in lines) if m]
    return version


@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_pods_run_without_root_and_privileges(folder: str) -> None:
    for pod in all_pods(folder):
        security = pod.spec["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] > 0, pod.name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, pod.name
        assert pod.container["securityContext"]["allowPrivilegeEscalation"] is False, pod.name
        assert pod.container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, pod.name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys(), pod.name
        assert not any("hostPath" in volume for volume in pod.spec.get("volumes", [])), pod.name


@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_only_heads_with_an_autoscaler_get_a_token_of_the_kubernetes_api(folder: str) -> None:
    for pod in all_pods(folder):
        is_autoscaled = pod.group == "head" and cluster_spec(pod.document).get("enableInTreeAutoscaling", False)
        assert pod.spec.get("automountServiceAccountToken", True) == is_autoscaled, pod.name
    for document in load_documents(folder):
        if is_ray_resource(document) and "autoscalerOptions" in cluster_spec(document):
            security = cluster_spec(document)["autoscalerOptions"]["securityContext"]
            assert security == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_resources_are_requested_and_disks_are_limited(folder: str) -> None:
    for pod in all_pods(folder):
        resources = pod.container["resources"]
        assert {"cpu", "memory"} <= resources["requests"].keys() and "memory" in resources["limits"], pod.name
        assert resources["requests"]["memory"] == resources["limits"]["memory"], pod.name
        if pod.group != "submitter":
            assert "ephemeral-storage" in resources["requests"], pod.name
        for volume in pod.spec.get("volumes", []):
            assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"], (pod.name, volume)


@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_every_mount_has_a_volume_and_every_claim_is_declared(folder: str) -> None:
    claims = {d["metadata"]["name"] for d in load_documents(folder) if d["kind"] == "PersistentVolumeClaim"}
    for pod in all_pods(folder):
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        assert {mount["name"] for mount in pod.container.get("volumeMounts", [])} == volumes.keys(), pod.name
        used = {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v}
        assert used <= claims, pod.name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_workers_drain_before_they_are_killed(overlay: str) -> None:
    for pod in (pod for pod in all_pods(overlay) if pod.group not in ("head", "submitter")):
        drain, grace = int(pod.env[DRAIN_TIMEOUT] or 0), pod.spec["terminationGracePeriodSeconds"]
        # Between them the node leaves the cluster.
        assert 20 <= grace - drain <= 60, pod.name
        assert drain >= 150, pod.name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_requests_end_before_their_node_is_killed(overlay: str) -> None:
    service = find_document(load_documents(overlay), "RayService", "incidents")
    [application] = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    _, replicas = iter_pods(service)
    max_seconds = application["args"]["serving"]["max_seconds"]
    assert max_seconds < int(replicas.env[DRAIN_TIMEOUT] or 0)
    assert max_seconds < service["spec"]["rayClusterDeletionDelaySeconds"]


def test_heads_run_no_tasks_and_restart_at_once() -> None:
    for pod in (pod for overlay in OVERLAYS for pod in all_pods(overlay) if pod.group == "head"):
        assert cluster_spec(pod.document)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", pod.name
        assert pod.env[DRAIN_TIMEOUT] == "0", pod.name


def test_groups_of_gpus_take_whole_nodes_and_local_disks() -> None:
    for pod in (pod for overlay in ("overlays/gpu", "overlays/spot") for pod in all_pods(overlay)):
        if not pod.group.startswith("gpu"):
            continue
        volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
        assert num_gpus(pod.container) == 8
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
        assert "ephemeral" in volumes["scratch"]
        mounts = {mount["name"]: mount["mountPath"] for mount in pod.container["volumeMounts"]}
        assert mounts == {"shared": "/mnt/shared", "scratch": "/tmp/ray", "shm": "/dev/shm"}
        assert pod.env["NCCL_SOCKET_IFNAME"] == "eth0"


def test_overlay_without_gpus_asks_for_none() -> None:
    assert not [pod.name for pod in all_pods("overlays/cpu") if num_gpus(pod.container)]
    assert "use_gpu" not in render("overlays/cpu") and "num_gpus" not in render("overlays/cpu")


def test_spot_nodes_are_preferred_to_nodes_on_demand() -> None:
    for document in load_documents("overlays/spot"):
        if document["kind"] not in ("RayCluster", "RayJob"):
            continue
        groups = {group["groupName"]: group for group in cluster_spec(document)["workerGroupSpecs"]}
        assert groups["gpu-spot"]["priority"] > groups["gpu"]["priority"]
        for name, capacity in (("gpu-spot", "spot"), ("gpu", "on-demand")):
            assert groups[name]["labels"] == {"market": capacity}
            assert groups[name]["template"]["spec"]["nodeSelector"] == {"karpenter.sh/capacity-type": capacity}
            assert groups[name]["minReplicas"] == 0


def test_image_of_ray_pods_is_named_once() -> None:
    name = "registry.example.com/instruct-ray"
    kustomizations = [path for path in FILES if path.suffix == ".yaml" and path.parent.name != "launcher"]
    assert [path for path in kustomizations if name in path.read_text()] == [CLUSTER / "base/kustomization.yaml"]
    images = {pod.container["image"] for overlay in OVERLAYS for pod in all_pods(overlay)}
    assert images == {f"{name}:ray-{pinned_version('ray')}"}
    assert {pod.container["image"] for pod in all_pods("mlflow")} == {
        f"ghcr.io/mlflow/mlflow:v{pinned_version('mlflow')}-full"
    }


def test_versions_match_pyproject() -> None:
    texts = "\n".join(path.read_text() for path in FILES)
    assert set(re.findall(r"rayproject/ray:([\d.]+)-", texts)) == {pinned_version("ray")}
    assert set(re.findall(r"instruct-ray:(\S+)", texts)) == {f"ray-{pinned_version('ray')}"}
    specs = [cluster_spec(d) for overlay in OVERLAYS for d in load_documents(overlay) if is_ray_resource(d)]
    assert {spec["rayVersion"] for spec in specs} == {pinned_version("ray")}
    assert [spec["authOptions"] for spec in specs] == [{"mode": "token"}] * 12


SECRET_NAME = re.compile(r"PASSWORD|TOKEN|SECRET|KEY|CREDENTIAL|BACKEND_STORE_URI")


@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_no_secret_is_in_plain_text(folder: str) -> None:
    assert not [document for document in load_documents(folder) if document["kind"] == "Secret"]
    for pod in all_pods(folder):
        assert not [name for name, value in pod.env.items() if SECRET_NAME.search(name) and value], pod.name
    assert not re.search(r"://[^/\s]+:[^/\s]+@|hf_\w{8}|AKIA\w{8}|BEGIN [A-Z ]*PRIVATE KEY", render(folder))


def find_secrets(node: object) -> Iterator[str]:
    """Names of secrets that a document refers to."""
    if isinstance(node, dict):
        if isinstance(node.get("secretName"), str):
            yield node["secretName"]
        for key in ("secretRef", "secretKeyRef"):
            if isinstance(node.get(key), dict):
                yield node[key]["name"]
        for value in node.values():
            yield from find_secrets(value)
    elif isinstance(node, list):
        for value in node:
            yield from find_secrets(value)


def test_commands_that_make_the_secrets_are_written_down() -> None:
    texts = "\n".join(path.read_text() for path in FILES)
    names = {name for folder in KUSTOMIZATIONS for name in find_secrets(load_documents(folder))}
    assert names == {"instruct-ray-credentials", "instruct-ray-api-keys", "mlflow", "mlflow-object-store"}
    for name in names:
        assert f"kubectl create secret generic {name} -n instruct-ray" in texts, name


def selects(selector: Document, labels: Document) -> bool:
    """Whether a label selector selects a pod; pods of Ray also have the label ray.io/node-type."""
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "Exists" for expression in expressions)
    return selector["matchLabels"].items() <= labels.items() and {e["key"] for e in expressions} <= labels.keys()


def test_metrics_ports_are_open_to_prometheus_alone() -> None:
    documents = load_documents("overlays/gpu")
    policy = find_document(documents, "NetworkPolicy", "ray")["spec"]
    ray_pods = [pod for pod in all_pods("overlays/gpu") if pod.group != "submitter"]
    ports = [port for pod in ray_pods for port in pod.container["ports"]]
    declared = {port["containerPort"] for port in ports if "metrics" in port["name"]}
    assert declared == {8080, 44217, 44227}
    for pod in ray_pods:
        node_type = "head" if pod.group == "head" else "worker"
        labels = pod.template["metadata"]["labels"] | {"ray.io/node-type": node_type}
        assert selects(policy["podSelector"], labels), pod.name
    for rule in policy["ingress"]:
        open_ports = {port["port"] for port in rule.get("ports", [])}
        [peer] = rule["from"]
        if open_ports & declared:
            assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "monitoring"}
        elif not open_ports:
            # All ports between Ray pods, and for the pods that submit jobs.
            submitters = [pod for pod in all_pods("overlays/gpu") if pod.group == "submitter"]
            assert all(selects(peer["podSelector"], pod.template["metadata"]["labels"]) for pod in submitters)


def test_disruption_budget_covers_the_replicas_of_the_endpoint_alone() -> None:
    for overlay in ("overlays/gpu", "overlays/spot"):
        budget = find_document(load_documents(overlay), "PodDisruptionBudget", "endpoint")["spec"]
        selected = []
        for pod in all_pods(overlay):
            node_type = "head" if pod.group == "head" else "worker"
            labels = pod.template["metadata"]["labels"] | {"ray.io/node-type": node_type}
            if pod.group != "submitter" and selects(budget["selector"], labels):
                selected.append(pod)
        [pod] = selected
        assert pod.group == "replicas"
        [group] = cluster_spec(pod.document)["workerGroupSpecs"]
        assert group["minReplicas"] > budget["minAvailable"]
