"""One network of hosts for all tests of this folder, with the shared volume and MLflow."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.multinode import workloads
from tests.multinode.documents import Document, find_document, render
from tests.multinode.network import why_not
from tests.multinode.pods import Namespace, Pod


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
def mlflow_pod(namespace: Namespace, documents: list[Document]) -> Pod:
    """The pod of MLflow's Deployment; it ends with the namespace."""
    return workloads.start_mlflow(namespace, find_document(documents, "Deployment"))


@pytest.fixture(scope="session")
def prepared(namespace: Namespace, mlflow_pod: Pod, shared: Path) -> str:
    """A prepared run, which other runs start as copies of."""
    workloads.prepare_run(namespace, "prepared")
    return "prepared"
