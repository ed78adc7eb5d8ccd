"""A real MLflow store on SQLite for each test, copied from one that is created once."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from instruct_ray.config.schema import Config
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.tracking.mlflow_client import connect_mlflow
from tests.registry.fake_runs import add_version, copy_store, make_run
from tests.registry.moves import promote

if TYPE_CHECKING:
    from tests.registry.full_server import FullServer


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect_mlflow(f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture
def storage(empty_database: Path, tmp_path: Path) -> Path:
    """The folder of all runs, with an empty MLflow database."""
    copy_store(empty_database, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def registry(storage: Path) -> ModelRegistry:
    return ModelRegistry(f"sqlite:///{storage}/mlflow.db")


@pytest.fixture
def three(registry: ModelRegistry) -> ModelRegistry:
    """Three versions; version 1 is champion."""
    for _ in range(3):
        add_version(registry, manifest_digest="m" * 64)
    promote(registry, "1")
    return registry


@pytest.fixture
def config(storage: Path) -> Config:
    return make_run(storage)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator["FullServer"]:
    """MLflow on PostgreSQL with passwords and an S3 store, for all tests marked `servers`."""
    # Takes seconds, and most tests need none.
    from tests.registry.full_server import FullServer  # noqa: PLC0415

    server = FullServer(tmp_path_factory.mktemp("server"))
    try:
        server.start()
        yield server
    finally:
        server.stop()
