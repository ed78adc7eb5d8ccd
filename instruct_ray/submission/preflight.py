"""Checks before a job is submitted: what its cluster has, compared with what its stage needs."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from packaging.requirements import Requirement

from instruct_ray.config.label_selector import matches
from instruct_ray.errors import InputError, RunFailedError, last_line
from instruct_ray.submission import cluster_probe
from instruct_ray.submission.job_config import JobConfig
from instruct_ray.submission.job_server import JobServer
from instruct_ray.training.capacity.placement import Node, describe_shortage, plan_placement, required_cpus

PACKAGE = "instruct-ray"
# The resource of nodes for drivers: a driver on the head would end with the head, one on a spot node with that.
DRIVER_RESOURCE = "driver"
# A cluster may have to install the job's environment first.
PROBE_SECONDS = 300.0
TRAINING_STAGES = ("tune", "pipeline", "learning-curve")
# These read the sources; later stages read what `prepare` wrote.
READING_STAGES = ("prepare", "pipeline", "learning-curve")
# These run models with the resources of a serving replica.
SERVING_STAGES = ("evaluate", "register", "serve", "benchmark", "pipeline", "learning-curve")


@dataclass(frozen=True)
class Cluster:
    """What the probe found."""

    answer: Mapping[str, Any]

    @property
    def nodes(self) -> list[Node]:
        """The nodes that are alive."""
        return [
            Node(
                node["id"],
                node["name"],
                node["resources"].get("CPU", 0.0),
                node["resources"].get("GPU", 0.0),
                node["labels"],
            )
            for node in self.answer["nodes"]
        ]

    @property
    def dashboard_host(self) -> str | None:
        """The host that the dashboard listens on."""
        return urlsplit(f"//{self.answer['dashboard']}").hostname

    @property
    def driver_resources(self) -> dict[str, float]:
        """What a driver asks for, so that it runs on a node that is meant for drivers, if there are such nodes."""
        nodes = [node["resources"] for node in self.answer["nodes"]]
        has_nodes = any(DRIVER_RESOURCE in resources for resources in nodes) or self.may_grow_to(DRIVER_RESOURCE) > 0
        return {DRIVER_RESOURCE: 1.0} if has_nodes else {}

    def may_grow_to(self, resource: str) -> float:
        """How much of a resource an autoscaler may bring the cluster to; 0 without an autoscaler."""
        return float((self.answer["most"] or {}).get(resource, 0))


def probe_cluster(server: JobServer, stage: str, job: JobConfig, runtime_env: Mapping[str, Any]) -> Cluster:
    """Run the probe as a job, in the environment of the job that is to come.

    Raises:
        RunFailedError: it did not run.
    """
    question = {
        "packages": [PACKAGE, *(requirement.name for requirement in _requirements())],
        "modules": ["instruct_ray", *job.modules(), *find_extras(stage, job)],
        "files": job.files() if stage in READING_STAGES else [],
    }
    script = Path(cluster_probe.__file__).read_text()
    command = f"python -c {shlex.quote(script)} <<'END'\n{json.dumps(question)}\nEND"
    details, log = server.run_helper("preflight", command, runtime_env, PROBE_SECONDS)
    marker = cluster_probe.MARKER
    answers = [line.removeprefix(marker) for line in log.splitlines() if line.startswith(marker)]
    if not answers:
        reason = last_line(Exception(details.message or "")) or f"it is {details.status} after {PROBE_SECONDS:g} s"
        raise RunFailedError(f"{server.address}: a job that looks at the cluster did not run: {reason}")
    return Cluster(json.loads(answers[-1]))


def check_packages(cluster: Cluster, *, is_source_sent: bool) -> None:
    """Check that the image has the project and its packages, in versions that fit.

    `is_source_sent` tells whether the job runs the project's source from its working directory, not the image's.

    Raises:
        InputError: it does not.
    """
    found = cluster.answer["packages"]
    if "instruct_ray" in cluster.answer["missing_modules"]:
        raise InputError(
            "the cluster has no instruct_ray; use an image that has it (cluster/Dockerfile), or send its source with "
            "--working-dir"
        )
    here = metadata.version(PACKAGE)
    if not is_source_sent and found[PACKAGE] not in (None, here):
        raise InputError(
            f"the cluster has instruct_ray {found[PACKAGE]}, this machine {here}; install the cluster's version here, "
            "or build its image anew"
        )
    unfit = [one for one in _requirements() if not _fits(one, found[one.name])]
    if unfit:
        present = ", ".join(f"{one.name} {found[one.name]}" if found[one.name] else f"no {one.name}" for one in unfit)
        wanted = ", ".join(map(str, unfit))
        raise InputError(f"the cluster has {present}; instruct_ray {here} needs {wanted} in the cluster's image")


def check_inputs(cluster: Cluster, stage: str) -> None:
    """Check that the cluster has the files and modules that the config names.

    Raises:
        InputError: it does not.
    """
    if modules := [name for name in cluster.answer["missing_modules"] if name != "instruct_ray"]:
        raise InputError(
            f"the cluster has no package {', '.join(modules)}, which {stage} needs with this config; add it to the "
            "image (EXTRAS of cluster/Dockerfile), or send it with --working-dir"
        )
    if files := cluster.answer["missing_files"]:
        raise InputError(
            f"{stage}: the cluster has no {', '.join(files)}; copy it to a storage that its nodes see, or send it with "
            "--working-dir and a relative path"
        )


def check_resources(cluster: Cluster, stage: str, job: JobConfig) -> None:
    """Check that the cluster has, or may add, what the workers of a stage need.

    Raises:
        InputError: it has not.
    """
    train, serving = job.config.train, job.config.serving
    if stage in TRAINING_STAGES and not plan_placement(cluster.nodes, train):
        gpus = train.min_workers if train.use_gpu else 0
        if cluster.may_grow_to("GPU") < gpus or cluster.may_grow_to("CPU") < required_cpus(train):
            raise InputError(describe_shortage(cluster.nodes, train))
        if not train.wait_for_nodes:
            raise InputError(
                f"{describe_shortage(cluster.nodes, train)}; the autoscaler may add them: set train.wait_for_nodes, "
                "such as train.wait_for_nodes=900"
            )
    if stage in SERVING_STAGES and serving.num_gpus:
        fitting = [node for node in cluster.nodes if matches(node.labels, serving.label_selector)]
        if serving.num_gpus > max([cluster.may_grow_to("GPU"), *(node.gpus for node in fitting)]):
            raise InputError(
                f"serving.num_gpus={serving.num_gpus:g}: no node has so many GPUs, and none may be added; set "
                "serving.num_gpus=0 to run models on CPUs"
            )


def find_extras(stage: str, job: JobConfig) -> list[str]:
    """Modules of the project's extras that the stage needs with this config."""
    config, modules = job.config, list[str]()
    if stage in SERVING_STAGES and config.serving.engine == "vllm":
        modules.append("vllm")
    if stage in TRAINING_STAGES and config.model.lora is not None and config.model.lora.quantize is not None:
        modules.append("bitsandbytes")
    if stage == "benchmark":
        modules.append("lm_eval")
    if stage == "serve" and config.serving.tracing is not None:
        modules.append("opentelemetry.exporter.otlp.proto.http")
    return modules


def _fits(requirement: Requirement, version: str | None) -> bool:
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _requirements() -> list[Requirement]:
    """The packages that the project needs wherever it runs."""
    requirements = [Requirement(text) for text in metadata.requires(PACKAGE) or ()]
    return [one for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
