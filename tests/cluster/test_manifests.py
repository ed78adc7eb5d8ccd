"""What stands in cluster/ agrees with Kubernetes' and Ray's schemas, with the code, and with itself."""

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
TEXTS = {path.name: path.read_text() for path in sorted(CLUSTER.iterdir())}
DOCUMENTS = {name: list(yaml.safe_load_all(text)) for name, text in TEXTS.items() if name.endswith(".yaml")}
KUBERNETES = [document for documents in DOCUMENTS.values() for document in documents if "kind" in document]
RAY_RESOURCES = [document for document in KUBERNETES if document["apiVersion"] == "ray.io/v1"]
AWS: dict[str, Any] = DOCUMENTS["ray-cluster.aws.yaml"][0]
# `python -m jobs.X --config F key=value …`; what follows the last override (a quote, a comment) is not of the command.
COMMAND = re.compile(r"python -m jobs\.(\w+) --config (\S+?)((?: [\w.]+=[^\s\"]+)*)(?=[\s\"]|$)")


def _commands() -> list[tuple[str, str, str, list[str]]]:
    """File, job, config and overrides of every command in a comment or an entrypoint, broken lines put together."""
    found = []
    for name, text in TEXTS.items():
        flat = re.sub(r"\s*\\?\n[ #]*", " ", text)
        found += [(name, job, config, overrides.split()) for job, config, overrides in COMMAND.findall(flat)]
    return found


COMMANDS = _commands()


def _one(kind: str, name: str) -> dict[str, Any]:
    """The document of a kind and name."""
    (found,) = [d for d in KUBERNETES if (d["kind"], d["metadata"]["name"]) == (kind, name)]
    return found


def _cluster_spec(document: dict[str, Any]) -> dict[str, Any]:
    """The part that describes a Ray cluster, in any of the three resources."""
    spec: dict[str, Any] = document["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def _pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod specs of a resource."""
    if document["kind"] == "Deployment":
        return [document["spec"]["template"]["spec"]]
    spec = _cluster_spec(document) if document in RAY_RESOURCES else {}
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]] if spec else []
    return [group["template"]["spec"] for group in groups]


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with unknown keys refused, as `kubectl apply` does."""
    strict = dict(schema)
    if "properties" in schema:
        strict["properties"] = {name: _strict(inner) for name, inner in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            strict[key] = _strict(schema[key])
    return strict


@pytest.fixture(scope="module")
def problems() -> Callable[[dict[str, Any]], list[str]]:
    """What a resource definition says against a Ray resource (not its CEL rules)."""
    if not CRDS.is_dir():
        pytest.skip(f"no KubeRay resource definitions in {CRDS}")
    validators = {}
    for path in CRDS.glob("*.yaml.gz"):
        definition = yaml.safe_load(gzip.decompress(path.read_bytes()))["spec"]
        (version,) = [version for version in definition["versions"] if version["name"] == "v1"]
        # OpenAPI 3.0 speaks draft 4; its integer-or-string values carry an anyOf that says so.
        validators[definition["names"]["kind"]] = Draft4Validator(_strict(version["schema"]["openAPIV3Schema"]))

    def check(document: dict[str, Any]) -> list[str]:
        errors = validators[document["kind"]].iter_errors(document)
        return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]

    return check


@pytest.mark.parametrize("document", RAY_RESOURCES, ids=lambda document: document["kind"])
def test_ray_resources_fit_their_definitions(
    problems: Callable[[dict[str, Any]], list[str]], document: dict[str, Any]
) -> None:
    assert problems(document) == []


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
def test_a_spoilt_ray_resource_is_refused(
    problems: Callable[[dict[str, Any]], list[str]],
    document: dict[str, Any],
    path: list[str | int],
    key: str,
    value: object,
    message: str,
) -> None:
    document = deepcopy(document)
    target: Any = _cluster_spec(document)
    for step in path:
        target = target[step]
    target[key] = value
    (problem,) = problems(document)
    assert message in problem


def test_the_launcher_file_fits_rays_schema() -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    validator = Draft7Validator(schema)
    assert [error.message for error in validator.iter_errors(AWS)] == []
    assert not validator.is_valid(AWS | {"max_worker": 1})
    assert AWS["head_node_type"] in AWS["available_node_types"]


def test_every_command_is_found() -> None:
    assert len(COMMANDS) == sum(text.count("python -m jobs.") for text in TEXTS.values()) > 0
    assert ("ray-job.tune.yaml", "tune") in {(name, job) for name, job, _, _ in COMMANDS}


@pytest.mark.parametrize(
    ("job", "config", "overrides"), [c[1:] for c in COMMANDS], ids=[f"{c[0]}-{c[1]}" for c in COMMANDS]
)
def test_commands_name_jobs_configs_and_options_that_exist(job: str, config: str, overrides: list[str]) -> None:
    assert importlib.util.find_spec(f"jobs.{job}") is not None
    # Runs lie on the storage that all nodes mount.
    assert load_config(ROOT / config, overrides).run.storage.is_relative_to("/mnt/shared")


def test_the_job_has_a_gpu_for_every_worker() -> None:
    (config,) = [
        load_config(ROOT / c, o) for name, job, c, o in COMMANDS if (name, job) == ("ray-job.tune.yaml", "tune")
    ]
    (group,) = _cluster_spec(_one("RayJob", "instruct-ray-tune"))["workerGroupSpecs"]
    assert config.train.use_gpu
    assert config.train.num_workers == group["replicas"] * _gpus(group)


def _gpus(group: dict[str, Any]) -> int:
    return int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])


def _serve_config() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(_one("RayService", "incidents")["spec"]["serveConfigV2"])
    return config


def test_serve_config_is_what_serve_and_the_application_take() -> None:
    schema = ServeDeploySchema.model_validate(_serve_config())
    (application,) = schema.applications
    module, _, attribute = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))
    args = AppArgs.model_validate(application.args)
    (group,) = _cluster_spec(_one("RayService", "incidents"))["workerGroupSpecs"]
    assert args.serving.num_replicas * args.serving.num_gpus == group["replicas"] * _gpus(group)
    # Serve takes these from http_options; given here they would be ignored.
    assert not {"host", "port"} & args.serving.model_fields_set


def test_registry_uris_reach_the_mlflow_server() -> None:
    server = _one("Deployment", "mlflow")["spec"]["template"]["spec"]["containers"][0]["args"]
    options = dict(arg.removeprefix("--").split("=", 1) for arg in server if "=" in arg)
    port = _one("Service", "mlflow")["spec"]["ports"][0]["port"]
    uris = {load_config(ROOT / config, overrides).registry.uri for _, _, config, overrides in COMMANDS} - {None}
    uris.add(_serve_config()["applications"][0]["args"]["registry"]["uri"])
    assert {urlparse(uri).netloc for uri in uris} == {f"mlflow:{port}"}
    assert f"mlflow:{port}" in options["allowed-hosts"].split(",")
    assert options["port"] == str(port)


def test_every_mount_has_a_volume_and_every_claim_is_declared() -> None:
    claims = {document["metadata"]["name"] for document in KUBERNETES if document["kind"] == "PersistentVolumeClaim"}
    for pod in (pod for document in KUBERNETES for pod in _pods(document)):
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        assert {mount["name"] for c in pod["containers"] for mount in c.get("volumeMounts", [])} == volumes.keys()
        assert {volume["persistentVolumeClaim"]["claimName"] for volume in volumes.values()} <= claims


def test_services_select_the_pods_of_their_deployment() -> None:
    spec = _one("Deployment", "mlflow")["spec"]
    selector = _one("Service", "mlflow")["spec"]["selector"]
    assert selector == spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]


def test_rays_control_plane_asks_for_a_token_everywhere() -> None:
    assert [_cluster_spec(document)["authOptions"] for document in RAY_RESOURCES] == [{"mode": "token"}] * 3
    assert "ENV RAY_AUTH_MODE=token" in TEXTS["Dockerfile"].splitlines()
    assert "--env RAY_AUTH_MODE=token" in AWS["docker"]["run_options"]
    assert AWS["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    (start,) = [command for command in AWS["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start.split()


def _copied() -> Iterator[str]:
    """What the Dockerfile copies from the repository."""
    for line in TEXTS["Dockerfile"].splitlines():
        if line.startswith("COPY "):
            yield from [word for word in line.split()[1:] if not word.startswith("--")][:-1]


def test_the_image_copies_what_exists() -> None:
    copied = set(_copied())
    assert [path for path in copied if not (ROOT / path).exists()] == []
    assert {"jobs", "instruct_ray", "pyproject.toml", "constraints.txt"} <= copied


def _pin(package: str) -> str:
    """The version that pyproject.toml pins."""
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (version,) = [m[1] for m in (re.fullmatch(rf"{package}(?:\[.*\])?==(\S+)", line) for line in lines) if m]
    return version


def test_versions_are_those_of_the_project() -> None:
    everything = "\n".join(TEXTS.values())
    assert set(re.findall(r"rayproject/ray:([\d.]+)-", everything)) == {_pin("ray")}
    assert set(re.findall(r"instruct-ray:(\S+)", everything)) == {f"ray-{_pin('ray')}"}
    assert {_cluster_spec(document)["rayVersion"] for document in RAY_RESOURCES} == {_pin("ray")}
    images = {container["image"] for d in KUBERNETES for pod in _pods(d) for container in pod["containers"]}
    assert images == {AWS["docker"]["image"], f"ghcr.io/mlflow/mlflow:v{_pin('mlflow')}"}
