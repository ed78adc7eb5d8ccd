"""The RayService of `cluster/`: an endpoint on a host, asked from another one, that follows the registry's alias."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from instruct_ray.serving.api_keys import ApiKey, hash_key, make_key
from tests.multinode import workloads
from tests.multinode.documents import Document, find_document, shrink_cluster
from tests.multinode.hosts import Host
from tests.multinode.mlflow_deployment import MlflowDeployment
from tests.multinode.pods import IMAGE_USER, TEST_ENVIRONMENT, Namespace
from tests.multinode.ray_services import RayService

pytestmark = [pytest.mark.multinode, pytest.mark.timeout(900)]

KEY = make_key()
KEYS_SECRET = "instruct-ray-api-keys"
# Prints the status and the body of a response.
CLIENT = """
import sys, urllib.request, urllib.error
url, key, data = sys.argv[1:]
headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
request = urllib.request.Request(url, data.encode() or None, headers)
try:
    with urllib.request.urlopen(request, timeout=60) as response:
        print(response.status, response.read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""


@pytest.fixture(scope="module")
def service(
    namespace: Namespace, mlflow: MlflowDeployment, documents: list[Document], shared: Path, prepared: str
) -> Iterator[RayService]:
    """The service, which serves the first version of the tiny model."""
    make_version(namespace, shared, prepared, "version-1")
    entry = ApiKey(name="tests", sha256=hash_key(KEY)).model_dump(exclude_none=True)
    namespace.secrets[KEYS_SECRET] = {"keys.yaml": yaml.safe_dump([entry])}
    spec = find_document(documents, "RayService")["spec"]
    spec["rayClusterConfig"] = shrink_cluster(spec["rayClusterConfig"], num_workers=2)
    service = RayService(namespace, "endpoint", spec)
    (application,) = service.config["applications"]
    application["args"]["registry"]["name"] = "tiny"
    application["args"]["serving"] |= {"num_replicas": 1, "num_cpus": 1, "follow_seconds": 2}
    application["args"]["serving"].pop("autoscaling", None)
    service.cluster.start()
    service.deploy()
    yield service
    service.cluster.delete()


def make_version(namespace: Namespace, shared: Path, prepared: str, run: str, *overrides: str) -> None:
    """Tune, evaluate and register a prepared run in a pod, which moves the alias to it."""
    workloads.copy_run(shared, prepared, run)
    command = workloads.job_command("pipeline", run, "train.num_workers=1", *overrides)
    workloads.run_in_pod(namespace, run, command)


@pytest.fixture(scope="module")
def client(namespace: Namespace) -> Iterator[Host]:
    """A host that is no node of the cluster."""
    host = namespace.network.add_host("client", namespace.network.reserve_address("client"))
    host.start(["sleep", "infinity"], TEST_ENVIRONMENT, user=IMAGE_USER)
    yield host
    namespace.network.remove_host(host)


def ask(client: Host, url: str, key: str, body: Any = None) -> tuple[int, Any]:
    """(status, JSON of the response) of a request that the client sends."""
    data = "" if body is None else json.dumps(body)
    result = client.run(["python", "-c", CLIENT, url, key, data], TEST_ENVIRONMENT, IMAGE_USER)
    status, _, content = result.stdout.partition(" ")
    assert status.isdigit(), result
    return int(status), json.loads(content)


def chat(client: Host, service: RayService, key: str = KEY) -> tuple[int, Any]:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "How bad is it?\n\nprinter jams"}],
        "max_tokens": 4,
    }
    return ask(client, f"{service.addresses[0]}/v1/chat/completions", key, body)


def test_the_endpoint_answers_another_host_with_a_key_only(service: RayService, client: Host) -> None:
    status, answer = chat(client, service)
    assert status == 200, answer
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert chat(client, service, key="")[0] == 401
    assert {ask(client, f"{url}/health", "")[0] for url in service.addresses} == {200}


@pytest.mark.slow
def test_the_endpoint_follows_the_alias(
    service: RayService, client: Host, namespace: Namespace, shared: Path, prepared: str
) -> None:
    _, before = chat(client, service)
    make_version(namespace, shared, prepared, "version-2", "train.epochs=2")
    deadline = time.monotonic() + 120
    # It identifies the version.
    while (after := chat(client, service)[1])["system_fingerprint"] == before["system_fingerprint"]:
        assert time.monotonic() < deadline, (before, after)
        time.sleep(1)
    assert after["choices"][0]["message"]["role"] == "assistant"
