"""MLflow as a team runs it: a server on PostgreSQL with passwords, and an S3 store that large files go to in parts.

Everything is real but the store, which is moto's S3 server.
"""

import logging
import socket
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
from moto.server import ThreadedMotoServer

from tests.mlflow_server import MlflowServer
from tests.postgres_server import PostgresServer

BUCKET = "versions"
# User and password. The administrator may do everything, the reader reads.
ADMIN = ("admin", "correct horse battery")
READER = ("reader", "staple staple staple")
# A password is hashed once, not at every request, which takes a second on a busy machine (auth_cache_ttl_seconds).
# Of the store: uploads in parts of fewer bytes are refused, as by S3.
PART_BYTES = 5 * 1024**2
STORE_KEYS = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_DEFAULT_REGION": "us-east-1"}
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
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.database = PostgresServer()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._store_port = probe.getsockname()[1]
        self._folder = folder
        self.mlflow: MlflowServer | None = None

    def start(self) -> None:
        """Start everything; on a busy machine MLflow takes more than a minute."""
        self.start_store()
        self.database.create("mlflow", "auth")
        endpoint = f"http://127.0.0.1:{self._store_port}"
        self.files: Any = boto3.client(
            "s3", endpoint_url=endpoint, region_name="us-east-1",
            aws_access_key_id="nobody", aws_secret_access_key="nothing",
        )  # fmt: skip
        self.files.create_bucket(Bucket=BUCKET)
        auth_config = self._folder / "auth.ini"
        auth_config.write_text(AUTH_CONFIG.format(database=self.database.uri("auth"), user=ADMIN[0], password=ADMIN[1]))
        options = ["--app-name", "basic-auth", "--backend-store-uri", self.database.uri("mlflow")]
        options += ["--artifacts-destination", f"s3://{BUCKET}"]
        environment = STORE_KEYS | {
            "MLFLOW_AUTH_CONFIG_PATH": str(auth_config),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "secret",
            "MLFLOW_S3_ENDPOINT_URL": endpoint,
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

    def start_store(self) -> None:
        """Start the store; what was in it before is there again."""
        self._store = ThreadedMotoServer(ip_address="127.0.0.1", port=self._store_port, verbose=False)
        self._store.start()

    def stop_store(self) -> None:
        """Stop the store; connections are refused."""
        self._store.stop()

    @property
    def uri(self) -> str:
        """Where the MLflow server listens."""
        assert self.mlflow is not None
        return self.mlflow.uri

    def objects(self) -> list[Any]:
        """All objects of the store."""
        return list(self.files.list_objects_v2(Bucket=BUCKET).get("Contents", []))

    def stop(self) -> None:
        """Stop everything that was started."""
        if self.mlflow is not None:
            self.mlflow.kill()
        self.stop_store()
        self.database.remove()


def log_in(monkeypatch: pytest.MonkeyPatch, user: str, password: str) -> None:
    """Set the credentials that MLflow's client sends."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
