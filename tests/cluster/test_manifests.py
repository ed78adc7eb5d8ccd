"""The files in cluster/ match the schemas of Kubernetes and Ray, the code, and each other."""

import gzip
import importlib
import importlib.util
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import ray.autoscaler
import yaml
from jsonschema import Draft4Validator, Draft7Validator
from ray.serve.schema import ServeDeploySchema

from instruct_ray.config.load import load_config
from instruct_ray.serving.app import AppArgs

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
CRDS = ROOT.parent / "shared" / "data" / "kuberay-crds"
TEXTS = {path.name: path.read_text() for path in sorted(CLUSTER.iterdir()) if path.is_file()}
DOCUMENTS = {name: list(yaml.safe_load_all(text)) for name, text in TEXTS.items() if name.endswith(".yaml")}
KUBERNETES = [document for documents in DOCUMENTS.values() for document in documents if "kind" in document]
RAY_RESOURCES = [document for document in KUBERNETES if document["apiVersion"] == "ray.io/v1"]
AWS: dict[str, Any] = DOCUMENTS["ray-cluster.aws.yaml"][0]
# `python -m jobs.X --config F key=value ...`, up to a quote or comment after the last override.
COMMAND = re.compile(r"python -m jobs\.(\w+) --config (\S+?)((?: [\w.]+=[^\s\"]+)*)(?=[\s\"]|$)")


def _find_commands() -> list[tuple[str, str, str, list[str]]]:
    """Find (file, job, config, overrides) of every command in comments and entrypoints, also over several lines."""
    commands = []
    for name, text in TEXTS.items():
        flat = re.sub(r"\s*\\?\n[ #]*", " ", text)
        commands += [(name, job, config, overrides.split()) for job, config, overrides in COMMAND.findall(flat)]
    return commands


COMMANDS = _find_commands()


def _get_document(kind: str, name: str) -> dict[str, Any]:
    """Get the document of a kind and name."""
    (document,) = [d for d in KUBERNETES if (d["kind"], d["metadata"]["name"]) == (kind, name)]
    return document


def _cluster_spec(document: dict[str, Any]) -> dict[str, Any]:
    """Get the spec of the Ray cluster in a RayCluster, RayJob or RayService."""
    spec: dict[str, Any] = document["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def _pod_specs(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Get the pod specs of a resource."""
    if document["kind"] == "Deployment":
        return [document["spec"]["template"]["spec"]]
    spec = _cluster_spec(document) if document in RAY_RESOURCES else {}
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]] if spec else []
    return [group["template"]["spec"] for group in groups]


def _make_strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Make a schema reject unknown keys, as `kubectl apply` does."""
    strict = dict(schema)
    if "properties" in schema:
        strict["properties"] = {name: _make_strict(inner) for name, inner in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            strict[key] = _make_strict(schema[key])
    return strict


@pytest.fixture(scope="module")
def validate() -> Callable[[dict[str, Any]], list[str]]:
    """Validates a Ray resource against its resource definition, without the CEL rules; returns the errors."""
    if not CRDS.is_dir():
        pytest.skip(f"no KubeRay resource definitions in {CRDS}")
    validators = {}
    for path in CRDS.glob("*.yaml.gz"):
        definition = yaml.safe_load(gzip.decompress(path.read_bytes()))["spec"]
        (version,) = [version for version in definition["versions"] if version["name"] == "v1"]
        # OpenAPI 3.0 is based on draft 4.
        validators[definition["names"]["kind"]] = Draft4Validator(_make_strict(version["schema"]["openAPIV3Schema"]))

    def validate_document(document: dict[str, Any]) -> list[str]:
        errors = validators[document["kind"]].iter_errors(document)
        return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]

    return validate_document


@pytest.mark.parametrize("document", RAY_RESOURCES, ids=lambda document: document["kind"])
def test_ray_resources_match_their_definitions(
    validate: Callable[[dict[str, Any]], list[str]], document: dict[str, Any]
) -> None:
    assert validate(document) == []


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
@pytest.mark.parametrize("document", RAY_RESOURCES, ids=lambda document: document["kind"])
def test_invalid_ray_resource_is_rejected(
    validate: Callable[[dict[str, Any]], list[str]],
    document: dict[str, Any],
    path: list[str | int],
    key: str,
    value: object,
    message: str,
) -> None:
    document = deepcopy(document)
    target: Any = _cluster_spec(document)
    for part in path:
        target = target[part]
    target[key] = value
    (error,) = validate(document)
    assert message in error


def test_launcher_file_matches_the_schema_of_ray() -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    validator = Draft7Validator(schema)
    assert [error.message for error in validator.iter_errors(AWS)] == []
    assert not validator.is_valid(AWS | {"max_worker": 1})
    assert AWS["head_node_type"] in AWS["available_node_types"]


def test_all_commands_are_found() -> None:
    assert len(COMMANDS) == sum(text.count("python -m jobs.") for text in TEXTS.values()) > 0
    assert ("ray-job.tune.yaml", "tune") in {(name, job) for name, job, _, _ in COMMANDS}


@pytest.mark.parametrize(
    ("job", "config", "overrides"),
    [command[1:] for command in COMMANDS],
    ids=[f"{name}-{job}" for name, job, _, _ in COMMANDS],
)
def test_commands_use_existing_jobs_configs_and_options(job: str, config: str, overrides: list[str]) -> None:
    assert importlib.util.find_spec(f"jobs.{job}") is not None
    # Runs are in the storage that all nodes mount.
    assert load_config(ROOT / config, overrides).run.storage.is_relative_to("/mnt/shared")


def test_ray_job_has_a_gpu_for_every_worker() -> None:
    (config,) = [
        load_config(ROOT / c, o) for name, job, c, o in COMMANDS if (name, job) == ("ray-job.tune.yaml", "tune")
    ]
    (group,) = _cluster_spec(_get_document("RayJob", "instruct-ray-tune"))["workerGroupSpecs"]
    assert config.train.use_gpu
    assert config.train.num_workers == group["replicas"] * _gpus(group)


def _gpus(group: dict[str, Any]) -> int:
    return int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])


def _serve_config() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(_get_document("RayService", "incidents")["spec"]["serveConfigV2"])
    return config


def test_serve_config_is_valid_for_serve_and_the_application() -> None:
    schema = ServeDeploySchema.model_validate(_serve_config())
    (application,) = schema.applications
    module, _, attribute = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))
    args = AppArgs.model_validate(application.args)
    (group,) = _cluster_spec(_get_document("RayService", "incidents"))["workerGroupSpecs"]
    assert args.serving.num_replicas * args.serving.num_gpus == group["replicas"] * _gpus(group)
    # Serve takes these from http_options and would ignore them here.
    assert not {"host", "port"} & args.serving.model_fields_set


def test_registry_uris_point_to_the_mlflow_server() -> None:
    server = _get_document("Deployment", "mlflow")["spec"]["template"]["spec"]["containers"][0]["args"]
    options = dict(arg.removeprefix("--").split("=", 1) for arg in server if "=" in arg)
    port = _get_document("Service", "mlflow")["spec"]["ports"][0]["port"]
    uris = {load_config(ROOT / config, overrides).registry.uri for _, _, config, overrides in COMMANDS} - {None}
    uris.add(_serve_config()["applications"][0]["args"]["registry"]["uri"])
    assert {urlparse(uri).netloc for uri in uris} == {f"mlflow:{port}"}
    assert f"mlflow:{port}" in options["allowed-hosts"].split(",")
    assert options["port"] == str(port)


def test_every_mount_has_a_volume_and_every_claim_is_declared() -> None:
    claims = {document["metadata"]["name"] for document in KUBERNETES if document["kind"] == "PersistentVolumeClaim"}
    for pod in (pod for document in KUBERNETES for pod in _pod_specs(document)):
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        assert {mount["name"] for c in pod["containers"] for mount in c.get("volumeMounts", [])} == volumes.keys()
        used = {volume["persistentVolumeClaim"]["claimName"] for volume in volumes.values() if "secret" not in volume}
        assert used <= claims


def test_secrets_are_made_by_the_commands_in_the_same_file() -> None:
    for path in CLUSTER.glob("*.yaml"):
        for name in re.findall(r"secretName: ([\w-]+)", path.read_text()):
            assert f"kubectl create secret generic {name} " in path.read_text(), (path, name)


def test_endpoint_for_other_machines_needs_keys_from_a_mounted_file() -> None:
    [service] = [document for document in KUBERNETES if document["kind"] == "RayService"]
    [application] = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    keys_file = Path(application["args"]["serving"]["api_keys_file"])
    [group] = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    assert str(keys_file.parent) in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_services_select_the_pods_of_their_deployment() -> None:
    spec = _get_document("Deployment", "mlflow")["spec"]
    selector = _get_document("Service", "mlflow")["spec"]["selector"]
    assert selector == spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]


def test_token_authentication_is_enabled_everywhere() -> None:
    assert [_cluster_spec(document)["authOptions"] for document in RAY_RESOURCES] == [{"mode": "token"}] * 3
    assert "ENV RAY_AUTH_MODE=token" in TEXTS["Dockerfile"].splitlines()
    assert "--env RAY_AUTH_MODE=token" in AWS["docker"]["run_options"]
    assert AWS["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    (start,) = [command for command in AWS["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start.split()


def _copied_paths() -> Iterator[str]:
    """Yield the paths that the Dockerfile copies from the repository."""
    for line in TEXTS["Dockerfile"].splitlines():
        if line.startswith("COPY "):
            yield from [word for word in line.split()[1:] if not word.startswith("--")][:-1]


def test_copied_paths_exist() -> None:
    copied = set(_copied_paths())
    assert [path for path in copied if not (ROOT / path).exists()] == []
    assert {"jobs", "instruct_ray", "pyproject.toml", "constraints.txt"} <= copied


def _pinned_version(package: str) -> str:
    """Get the version of a package that pyproject.toml pins."""
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (version,) = [m[1] for m in (re.fullmatch(rf"{package}(?:\[.*\])?==(\S+)", line) for line in lines) if m]
    return version


def test_versions_match_pyproject() -> None:
    all_text = "\n".join(TEXTS.values())
    assert set(re.findall(r"rayproject/ray:([\d.]+)-", all_text)) == {_pinned_version("ray")}
    assert set(re.findall(r"instruct-ray:(\S+)", all_text)) == {f"ray-{_pinned_version('ray')}"}
    assert {_cluster_spec(document)["rayVersion"] for document in RAY_RESOURCES} == {_pinned_version("ray")}
    images = {container["image"] for d in KUBERNETES for pod in _pod_specs(d) for container in pod["containers"]}
    assert images == {AWS["docker"]["image"], f"ghcr.io/mlflow/mlflow:v{_pinned_version('mlflow')}"}
