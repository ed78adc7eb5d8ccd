"""One network of hosts for all tests of this folder, with the shared volume and MLflow."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import postgres_server
from tests.multinode import workloads
from tests.multinode.documents import Document, find_document, render
from tests.multinode.mlflow_deployment import MlflowDeployment
from tests.multinode.network import why_not
from tests.multinode.pods import Namespace


@pytest.fixture(scope="session")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    """A Kubernetes namespace with the inputs of the tiny model on its shared volume."""
    if reason := why_not():
        pytest.skip(f"no hosts can be made of namespaces here: {reason}")
    namespace = Namespace(tmp_path_factory.mktemp("namespace"))
    try:
        workloads.write_inputs(namespace.claim_folder(workloads.SHARED_CLAIM))
        yield namespace
    finally:
        namespace.remove()


@pytest.fixture(scope="session")
def shared(namespace: Namespace) -> Path:
    """The shared volume, as this machine sees it."""
    return namespace.claim_folder(workloads.SHARED_CLAIM)


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    """The Kubernetes documents of the CPU overlay and of MLflow."""
    return [*render("overlays/cpu"), *render("mlflow")]


@pytest.fixture(scope="session")
def mlflow(namespace: Namespace, documents: list[Document]) -> Iterator[MlflowDeployment]:
    """MLflow's Deployment."""
    if reason := postgres_server.why_not():
        pytest.skip(reason)
    mlflow = MlflowDeployment(namespace, find_document(documents, "Deployment"))
    try:
        mlflow.start()
        yield mlflow
    finally:
        mlflow.stop()


@pytest.fixture(scope="session")
def prepared(namespace: Namespace, mlflow: MlflowDeployment, shared: Path) -> str:
    """A prepared run, which other runs start as copies of."""
    workloads.run_in_pod(namespace, "prepare", workloads.job_command("prepare", "prepared"))
    return "prepared"
