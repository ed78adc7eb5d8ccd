"""MLflow's pod as `cluster/mlflow` defines it, with PostgreSQL and an S3 store on this machine."""

import re
import time

from tests.mlflow_server import responds
from tests.multinode.documents import Document
from tests.multinode.pods import Namespace, Pod
from tests.postgres_server import PostgresServer
from tests.s3_server import KEY_VARIABLES, S3Server

# The secret that all pods get variables from.
CREDENTIALS = "instruct-ray-credentials"
PASSWORD = "a-password-of-the-tests"
BUCKET = "versions"
# As in the comments of cluster/mlflow/mlflow.yaml.
AUTH_SETTINGS = """[mlflow]
default_permission = READ
database_uri = {database}
admin_username = admin
auth_cache_ttl_seconds = 60
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


class MlflowDeployment:
    """The pod of MLflow's Deployment and its service, with basic authentication and one worker process."""

    def __init__(self, namespace: Namespace, deployment: Document) -> None:
        self.database = PostgresServer(namespace.network.gateway)
        folder = namespace.folder / "s3"
        folder.mkdir()
        self.store = S3Server(folder, namespace.network.gateway)
        self._namespace, self._deployment = namespace, deployment
        self.pod: Pod | None = None

    def start(self) -> None:
        """Start the servers and the pod, and wait until it is ready."""
        self.database.create("mlflow", "auth")
        self.store.start()
        self.store.client.create_bucket(Bucket=BUCKET)
        self._namespace.secrets |= {
            "mlflow": {
                "backend-store-uri": self.database.uri("mlflow"),
                "admin-password": PASSWORD,
                "flask-secret-key": "a-key-of-the-tests",
                "basic_auth.ini": AUTH_SETTINGS.format(database=self.database.uri("auth")),
            },
            "mlflow-object-store": {**KEY_VARIABLES, "MLFLOW_S3_ENDPOINT_URL": self.store.uri},
            CREDENTIALS: {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": PASSWORD},
        }
        address = self._namespace.reserve_service(self._deployment["metadata"]["name"])
        template = self._deployment["spec"]["template"]["spec"]
        (container,) = template["containers"]
        self.pod = Pod(self._namespace, "mlflow-0", template, address)
        args = [re.sub(r"s3://[^/]+/", f"s3://{BUCKET}/", arg) for arg in container["args"]]
        self.pod.start([*container["command"], *args, "--workers=1"])
        deadline = time.monotonic() + 300
        while not responds(f"http://{address}:5000/health"):
            assert self.pod.host.is_running and time.monotonic() < deadline, self.pod.host.log[-4000:]
            time.sleep(0.2)

    def object_keys(self) -> list[str]:
        """The keys of all objects in the store."""
        objects = self.store.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return [entry["Key"] for entry in objects]

    def stop(self) -> None:
        """Stop the servers; the pod ends with the namespace."""
        self.store.stop()
        self.database.remove()
