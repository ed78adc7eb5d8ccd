"""Commands and settings in cluster/ are those that the jobs, the config and the endpoint know."""

import importlib
from pathlib import Path
from urllib.parse import urlparse

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from instruct_ray.config.load import load_config
from instruct_ray.config.schema import Config
from instruct_ray.serving.app import AppArgs
from instruct_ray.training.capacity.memory import GIB
from instruct_ray.training.capacity.placement import Node, plan_placement
from tests.cluster.manifests import (
    CLUSTER,
    OVERLAYS,
    ROOT,
    Document,
    all_pods,
    cluster_spec,
    find_commands,
    find_document,
    iter_pods,
    load_documents,
    num_gpus,
)
from tests.jobs.config_sizes import ConfigSizes

FILES = [path for path in sorted(CLUSTER.rglob("*")) if path.is_file() and "monitoring" not in path.parts]
COMMANDS = [(path, *command) for path in FILES for command in find_commands(path.read_text())]
IDS = [f"{path.relative_to(CLUSTER)}-{job}" for path, job, _, _ in COMMANDS]
JOBS = [(overlay, job) for overlay in OVERLAYS for job in ("instruct-ray-pipeline", "instruct-ray-tune")]


def test_readme_names_every_file_that_is_applied() -> None:
    readme = (CLUSTER / "README.md").read_text()
    names = {str(path.relative_to(CLUSTER)) for path in FILES if path.parent.parent.name != "overlays"} - {"README.md"}
    names -= {"mlflow/kustomization.yaml", "mlflow/network-policy.yaml"}
    assert [name for name in sorted(names) if f"({name})" not in readme] == []


def test_all_commands_are_found() -> None:
    assert len(COMMANDS) == sum(path.read_text().count("python -m jobs.") for path in FILES) > 0


@pytest.mark.parametrize(("path", "job", "config", "overrides"), COMMANDS, ids=IDS)
def test_commands_use_existing_jobs_configs_and_options(
    path: Path, job: str, config: str, overrides: list[str]
) -> None:
    assert (ROOT / "jobs" / f"{job}.py").is_file(), path
    # Runs are in the storage that all nodes mount.
    assert load_config(ROOT / config, overrides).run.storage.is_relative_to("/mnt/shared")


def load_job(overlay: str, name: str) -> tuple[Document, Config]:
    """A RayJob and the config that its entrypoint loads."""
    document = find_document(load_documents(overlay), "RayJob", name)
    [(_, config, overrides)] = find_commands(document["spec"]["entrypoint"])
    return document, load_config(ROOT / config, overrides)


@pytest.mark.parametrize(("overlay", "name"), JOBS)
def test_workers_of_training_fit_the_pods(overlay: str, name: str) -> None:
    document, config = load_job(overlay, name)
    spec = cluster_spec(document)
    is_autoscaled = spec.get("enableInTreeAutoscaling", False)
    nodes = [
        Node(f"{group['groupName']}-{number}", "", int(container["resources"]["limits"]["cpu"]), num_gpus(container))
        for group in spec["workerGroupSpecs"]
        for container in group["template"]["spec"]["containers"]
        for number in range(group["maxReplicas"] if is_autoscaled else group["replicas"])
    ]
    assert plan_placement(nodes, config.train)
    # Where pods are made on demand, the run has to wait for them.
    assert bool(config.train.wait_for_nodes) == is_autoscaled


def test_nodes_of_gpus_have_the_memory_and_the_disks_that_their_config_needs() -> None:
    documents = load_documents("overlays/gpu")
    _, config = load_job("overlays/gpu", "instruct-ray-tune")
    sizes = ConfigSizes(config)
    job = find_document(documents, "RayJob", "instruct-ray-tune")
    [pod] = [pod for pod in iter_pods(job) if pod.group == "gpu"]
    volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
    # Memory of /dev/shm counts as the pod's.
    shm = gib(volumes["shm"]["emptyDir"]["sizeLimit"])
    assert sizes.node_bytes / GIB + shm < gib(pod.container["resources"]["limits"]["memory"])
    assert sizes.checkpoint / GIB < gib(requested_storage(volumes["scratch"]["ephemeral"]["volumeClaimTemplate"]))
    claim = find_document(documents, "PersistentVolumeClaim", "instruct-ray-shared")
    assert sizes.storage_bytes / GIB < gib(requested_storage(claim))


def requested_storage(claim: Document) -> str:
    """The size that a claim asks for."""
    return str(claim["spec"]["resources"]["requests"]["storage"])


def gib(quantity: str) -> int:
    """A quantity in GiB."""
    assert quantity.endswith("Gi")
    return int(quantity.removesuffix("Gi"))


@pytest.mark.parametrize(("overlay", "name"), JOBS)
def test_driver_runs_on_a_group_that_needs_no_gpu(overlay: str, name: str) -> None:
    document, _ = load_job(overlay, name)
    assert yaml.safe_load(document["spec"]["entrypointResources"]) == {"driver": 1}
    [group] = [group for group in cluster_spec(document)["workerGroupSpecs"] if "driver" in group.get("resources", {})]
    assert group["minReplicas"] >= 1
    assert num_gpus(group["template"]["spec"]["containers"][0]) == 0


def test_pipeline_holds_no_gpus_before_it_needs_them() -> None:
    for overlay in ("overlays/gpu", "overlays/spot"):
        document, _ = load_job(overlay, "instruct-ray-pipeline")
        for group in cluster_spec(document)["workerGroupSpecs"]:
            if num_gpus(group["template"]["spec"]["containers"][0]):
                assert group["minReplicas"] == group["replicas"] == 0
                assert group["idleTimeoutSeconds"] <= 300


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_serve_config_is_valid_for_serve_and_the_application(overlay: str) -> None:
    document = find_document(load_documents(overlay), "RayService", "incidents")
    schema = ServeDeploySchema.model_validate(yaml.safe_load(document["spec"]["serveConfigV2"]))
    [application] = schema.applications
    module, _, attribute = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))
    serving = AppArgs.model_validate(application.args).serving
    [group] = cluster_spec(document)["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    # A pod holds one replica, so pods follow replicas.
    assert serving.autoscaling is not None
    assert (serving.autoscaling.min_replicas, serving.max_replicas) == (group["minReplicas"], group["maxReplicas"])
    assert serving.num_gpus == num_gpus(container)
    assert serving.num_cpus < int(container["resources"]["limits"]["cpu"]) < 2 * serving.num_cpus + 1
    # Serve takes these from http_options and would ignore them here.
    assert not {"host", "port"} & serving.model_fields_set
    # An endpoint for other machines needs keys, which are mounted as a folder, so that they follow the secret.
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts[str(Path(str(serving.api_keys_file)).parent)] == "api-keys"


def test_registry_uris_point_to_the_mlflow_server() -> None:
    [server] = all_pods("mlflow")
    options = dict(arg.removeprefix("--").split("=", 1) for arg in server.container["args"] if "=" in arg)
    [port] = find_document(load_documents("mlflow"), "Service", "mlflow")["spec"]["ports"]
    uris = {load_config(ROOT / config, overrides).registry.uri for _, _, config, overrides in COMMANDS} - {None}
    for overlay in OVERLAYS:
        service = find_document(load_documents(overlay), "RayService", "incidents")
        [application] = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
        uris.add(application["args"]["registry"]["uri"])
    assert {urlparse(uri).netloc for uri in uris} == {f"mlflow:{port['port']}"}
    assert f"mlflow:{port['port']}" in options["allowed-hosts"].split(",")
    assert options["port"] == str(port["port"])
    assert server.env["MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD"] == "true"
    assert options["app-name"] == "basic-auth"


def test_services_select_the_pods_of_their_deployment() -> None:
    documents = load_documents("mlflow")
    spec = find_document(documents, "Deployment", "mlflow")["spec"]
    selector = find_document(documents, "Service", "mlflow")["spec"]["selector"]
    policy = find_document(documents, "NetworkPolicy", "mlflow")["spec"]["podSelector"]["matchLabels"]
    assert selector == policy == spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
