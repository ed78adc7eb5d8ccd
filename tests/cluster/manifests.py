"""Renders the kustomizations of cluster/ with kubectl, and finds the parts of the documents."""

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
# Packages that bring programs put them beside the interpreter.
PROGRAMS = Path(sys.executable).parent
OVERLAYS = ("overlays/cpu", "overlays/gpu", "overlays/spot")
KUSTOMIZATIONS = (*OVERLAYS, "mlflow")
# Where a Ray resource has the spec of its cluster.
CLUSTER_SPEC_KEYS = {"RayCluster": None, "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
# `python -m jobs.X --config F key=value ...`, up to a quote or comment after the last override.
COMMAND = re.compile(r"python -m jobs\.(\w+) --config (\S+?)((?: [\w.]+=[^\s\"]+)*)(?=[\s\"]|$)")

Document = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """A pod template of a document."""

    document: Document
    group: str
    """`head`, the name of a worker group, `submitter`, or the name of a deployment."""
    template: Document

    @property
    def spec(self) -> Document:
        """The pod's spec."""
        return dict(self.template["spec"])

    @property
    def container(self) -> Document:
        """The only container."""
        [container] = self.template["spec"]["containers"]
        return dict(container)

    @property
    def env(self) -> dict[str, str | None]:
        """Environment variables with a value in the manifest, and None for those by reference."""
        return {variable["name"]: variable.get("value") for variable in self.container.get("env", [])}

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.document['kind']}/{self.document['metadata']['name']}/{self.group}"


@cache
def render(folder: str) -> str:
    """The YAML of a kustomization in cluster/."""
    return render_folder(CLUSTER / folder)


def render_folder(folder: Path) -> str:
    """The YAML of a kustomization."""
    command = [PROGRAMS / "kubectl", "kustomize", folder]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def load_documents(folder: str) -> list[Document]:
    """The documents of a kustomization in cluster/."""
    return list(yaml.safe_load_all(render(folder)))


def find_document(documents: Sequence[Document], kind: str, name: str) -> Document:
    """The document of a kind and name."""
    [document] = [d for d in documents if (d["kind"], d["metadata"]["name"]) == (kind, name)]
    return document


def is_ray_resource(document: Document) -> bool:
    """Whether KubeRay defines the document's kind."""
    return bool(document["apiVersion"] == "ray.io/v1")


def cluster_spec(document: Document) -> Document:
    """The spec of the Ray cluster in a RayCluster, RayJob or RayService."""
    key = CLUSTER_SPEC_KEYS[document["kind"]]
    spec: Document = document["spec"]
    return dict(spec[key]) if key else spec


def iter_pods(document: Document) -> Iterator[Pod]:
    """The pods that a document describes."""
    if document["kind"] == "Deployment":
        yield Pod(document, document["metadata"]["name"], document["spec"]["template"])
    if not is_ray_resource(document):
        return
    if "submitterPodTemplate" in document["spec"]:
        yield Pod(document, "submitter", document["spec"]["submitterPodTemplate"])
    spec = cluster_spec(document)
    yield Pod(document, "head", spec["headGroupSpec"]["template"])
    for group in spec["workerGroupSpecs"]:
        yield Pod(document, group["groupName"], group["template"])


def all_pods(folder: str) -> list[Pod]:
    """The pods of a kustomization in cluster/."""
    return [pod for document in load_documents(folder) for pod in iter_pods(document)]


def find_commands(text: str) -> list[tuple[str, str, list[str]]]:
    """The (job, config, overrides) of every command in comments and entrypoints, also over several lines."""
    flat = re.sub(r"\s*\\?\n[ #]*", " ", text)
    return [(job, config, overrides.split()) for job, config, overrides in COMMAND.findall(flat)]


def num_gpus(container: Document) -> int:
    """The GPUs of a container."""
    return int(container["resources"]["limits"].get("nvidia.com/gpu", 0))
