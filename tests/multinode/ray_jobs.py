"""RayJobs: what KubeRay does with one, from the cluster and the submitter's script to the retry on a new cluster."""

import json
import time
from collections.abc import Mapping
from typing import Any

import yaml

from tests.multinode.documents import Document
from tests.multinode.kuberay import POLL_SECONDS, RayCluster
from tests.multinode.pods import Namespace, Pod, add_suffix

ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
HEALTH_CHECK = (
    "python -c \"import urllib.request; r=urllib.request.urlopen('{address}/api/gcs_healthz', timeout=10); "
    "exit(0 if b'success' in r.read() else 1)\""
)
# `submitterConfig.backoffLimit` of a RayJob that does not set it.
SUBMITTER_RETRIES = 2


class SubmittedJob:
    """A Ray job that a submitter pod submits over HTTP and whose log it follows."""

    def __init__(self, namespace: Namespace, cluster: RayCluster, name: str, entrypoint: str, **fields: Any) -> None:
        """`fields` are those of a RayJob's spec that concern the submitter, such as resources of the entrypoint."""
        self.cluster, self.id = cluster, add_suffix(name)
        self._namespace = namespace
        self._script = build_submit_script(f"http://{cluster.address}:8265", self.id, entrypoint, fields)
        template = fields.get("submitterPodTemplate", {"spec": {"containers": [{"name": "ray-job-submitter"}]}})
        self._pod_spec: Document = template["spec"]
        self._retries_left = fields.get("submitterConfig", {}).get("backoffLimit", SUBMITTER_RETRIES)
        self._logs: list[str] = []
        self._pod = self._start_submitter()

    def _start_submitter(self) -> Pod:
        environment = {"RAY_JOB_SUBMISSION_ID": self.id, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.cluster.token}
        pod = Pod(self._namespace, add_suffix(self.id), self._pod_spec, PYTHONUNBUFFERED="1", **environment)
        pod.start(["/bin/bash", "-ce", "--", self._script])
        return pod

    @property
    def log(self) -> str:
        """What the submitters printed: the log of the job."""
        return "\n".join([*self._logs, self._pod.host.log])

    @property
    def status(self) -> str:
        """The status that the dashboard has for the job; "UNKNOWN" while it does not answer or knows no such job."""
        try:
            return str(self.cluster.request(f"/api/jobs/{self.id}")["status"])
        except OSError:
            return "UNKNOWN"

    def wait(self, timeout: float = 240) -> str:
        """Wait for the end of the job and reconcile meanwhile; returns its status.

        A submitter that fails before the job has ended is started again. "UNKNOWN" if all of them have failed.
        """
        deadline = time.monotonic() + timeout
        while (status := self.status) not in ENDED:
            assert time.monotonic() < deadline, f"{self.id} did not end\n{self.log}\n{self.cluster.describe()}"
            self.cluster.reconcile()
            if not self._pod.host.is_running and self._pod.host.exit_code and not self._retry():
                return "UNKNOWN"
            time.sleep(POLL_SECONDS)
        self._finish_submitter()
        return status

    def _retry(self) -> bool:
        if not self._retries_left:
            return False
        self._retries_left -= 1
        self._finish_submitter(timeout=0)
        self._pod = self._start_submitter()
        return True

    def _finish_submitter(self, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while self._pod.host.is_running and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        self._logs.append(self._pod.host.log)
        self._pod.remove()


class RayJob:
    """A RayJob: a cluster of its own, the job on it, and as many retries, each on a new cluster, as it allows."""

    def __init__(self, namespace: Namespace, document: Document, **environment: str) -> None:
        self.name, self.spec = document["metadata"]["name"], document["spec"]
        self._namespace, self._environment = namespace, environment
        self.cluster: RayCluster | None = None
        self.statuses: list[str] = []
        """How the job ended on each of the clusters."""
        self.log = ""

    @property
    def running_cluster(self) -> RayCluster:
        """The cluster of the current attempt."""
        assert self.cluster is not None
        return self.cluster

    def run(self, timeout: float = 300) -> str:
        """Run the job to its end, with retries; returns the last status."""
        for _ in range(1 + self.spec.get("backoffLimit", 0)):
            self.cluster = RayCluster(
                self._namespace, add_suffix(self.name), self.spec["rayClusterSpec"], **self._environment
            )
            self.cluster.start()
            job = SubmittedJob(
                self._namespace, self.cluster, self.name, self.spec["entrypoint"], **_submitter_fields(self.spec)
            )
            self.statuses.append(job.wait(timeout))
            self.log += job.log
            if self.statuses[-1] != "SUCCEEDED" or self._deletes_cluster_after_success:
                self.cluster.delete()
            if self.statuses[-1] == "SUCCEEDED":
                break
        return self.statuses[-1]

    @property
    def _deletes_cluster_after_success(self) -> bool:
        """Whether the cluster of a job that has succeeded is deleted. Nobody waits for the time that it is kept."""
        rules = self.spec.get("deletionStrategy", {}).get("deletionRules", [])
        by_rule = any(
            rule["policy"] == "DeleteCluster" and rule["condition"].get("jobStatus") == "SUCCEEDED" for rule in rules
        )
        return by_rule or bool(self.spec.get("shutdownAfterJobFinishes"))


def build_submit_script(address: str, job_id: str, entrypoint: str, fields: Mapping[str, Any]) -> str:
    """The script of KubeRay's submitter, in K8sJobMode."""
    submit = ["ray", "job", "submit", "--address", address, "--no-wait"]
    if runtime_env := fields.get("runtimeEnvYAML"):
        submit += ["--runtime-env-json", json.dumps(json.dumps(yaml.safe_load(runtime_env)))]
    if metadata := fields.get("metadata"):
        submit += ["--metadata-json", json.dumps(json.dumps(metadata))]
    submit += ["--submission-id", job_id]
    for field, option in (("entrypointNumCpus", "cpus"), ("entrypointNumGpus", "gpus")):
        if number := fields.get(field):
            submit += [f"--entrypoint-num-{option}", f"{number:f}"]
    if resources := fields.get("entrypointResources"):
        submit += ["--entrypoint-resources", json.dumps(resources)]
    health_check = HEALTH_CHECK.format(address=address)
    wait = f'until {health_check} >/dev/null 2>&1 ; do echo "Waiting for Ray Dashboard GCS" ; sleep 2 ; done ;'
    status = f"ray job status --address {address} {job_id} >/dev/null 2>&1"
    follow = f"ray job logs --address {address} --follow {job_id}"
    return f"{wait} if ! {status} ; then {' '.join(submit)} -- {entrypoint.strip()} ; fi ; {follow}"


def _submitter_fields(spec: Document) -> dict[str, Any]:
    names = ("runtimeEnvYAML", "metadata", "entrypointNumCpus", "entrypointNumGpus", "entrypointResources")
    return {name: spec[name] for name in (*names, "submitterConfig", "submitterPodTemplate") if name in spec}
