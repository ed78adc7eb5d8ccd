"""MLflow as a team runs it: a server on PostgreSQL with passwords, and an S3 store that large files go to in parts."""

from pathlib import Path
from typing import Any

import pytest
import requests

from tests.mlflow_server import MlflowServer
from tests.postgres_server import PostgresServer
from tests.s3_server import KEY_VARIABLES, S3Server

BUCKET = "versions"
# User and password. The administrator may do everything, the reader reads.
ADMIN = ("admin", "correct horse battery")
READER = ("reader", "staple staple staple")
# A password is hashed once, not at every request, which takes a second on a busy machine (auth_cache_ttl_seconds).
# Of the store: uploads in parts of fewer bytes are refused, as by S3.
PART_BYTES = 5 * 1024**2
AUTH_CONFIG = """[mlflow]
default_permission = READ
auth_cache_ttl_seconds = 60
database_uri = {database}
admin_username = {user}
admin_password = {password}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


class FullServer:
    """The MLflow server, its database and its store of files."""

    def __init__(self, folder: Path) -> None:
        self.database = PostgresServer()
        store_folder = folder / "store"
        store_folder.mkdir()
        self.store = S3Server(store_folder)
        self._folder = folder
        self.mlflow: MlflowServer | None = None

    def start(self) -> None:
        """Start everything; on a busy machine MLflow takes more than a minute."""
        self.store.start()
        self.store.client.create_bucket(Bucket=BUCKET)
        self.database.create("mlflow", "auth")
        auth_config = self._folder / "auth.ini"
        auth_config.write_text(AUTH_CONFIG.format(database=self.database.uri("auth"), user=ADMIN[0], password=ADMIN[1]))
        options = ["--app-name", "basic-auth", "--backend-store-uri", self.database.uri("mlflow")]
        options += ["--artifacts-destination", f"s3://{BUCKET}"]
        environment = KEY_VARIABLES | {
            "MLFLOW_AUTH_CONFIG_PATH": str(auth_config),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "secret",
            "MLFLOW_S3_ENDPOINT_URL": self.store.uri,
            "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        self.mlflow = MlflowServer(self._folder, options, environment)
        self.mlflow.start()
        response = requests.post(
            f"{self.uri}/api/2.0/mlflow/users/create",
            json={"username": READER[0], "password": READER[1]},
            auth=ADMIN,
            timeout=60,
        )
        assert response.ok, response.text

    @property
    def uri(self) -> str:
        """Where the MLflow server listens."""
        assert self.mlflow is not None
        return self.mlflow.uri

    def objects(self) -> list[Any]:
        """All objects of the store."""
        return list(self.store.client.list_objects_v2(Bucket=BUCKET).get("Contents", []))

    def stop(self) -> None:
        """Stop everything that was started."""
        if self.mlflow is not None:
            self.mlflow.kill()
        self.store.stop()
        self.database.remove()


def log_in(monkeypatch: pytest.MonkeyPatch, user: str, password: str) -> None:
    """Set the credentials that MLflow's client sends."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
