"""A real S3 store, SeaweedFS, that a test can stop and start again."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.ports import find_free_ports

ACCESS_KEY, SECRET_KEY = "tests", "a secret of the tests"
# What a client on this machine needs to find the keys.
KEY_VARIABLES = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_DEFAULT_REGION": "us-east-1",
}  # fmt: skip
READY_BUCKET = "ready"
START_SECONDS = 60
# Each service listens on a port for HTTP and on another one for gRPC.
SERVICES = ("master", "volume", "filer", "s3")


class S3Server:
    """A server process; its port, and its objects in `folder`, survive a restart."""

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        self._folder, self._address = folder, address
        ports = find_free_ports(2 * len(SERVICES))
        self._ports = dict(zip(SERVICES, ports[::2], strict=True))
        self._grpc_ports = dict(zip(SERVICES, ports[1::2], strict=True))
        self._has_started = False
        self._process: subprocess.Popen[bytes] | None = None
        self.uri = f"http://{address}:{self._ports['s3']}"
        self.client: Any = boto3.client(
            "s3", endpoint_url=self.uri, region_name="us-east-1", config=Config(retries={"total_max_attempts": 1}),
            aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY,
        )  # fmt: skip

    def start(self) -> None:
        """Start the server and wait until it answers."""
        (self._folder / "data").mkdir(exist_ok=True)
        keys_file = self._folder / "keys.json"
        credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
        identity = {"name": "tests", "credentials": credentials, "actions": ["Admin", "Read", "List", "Write"]}
        keys_file.write_text(json.dumps({"identities": [identity]}))
        # A script beside the interpreter.
        command = [str(Path(sys.executable).with_name("weed")), "server", f"-dir={self._folder}/data", "-filer", "-s3"]
        command += [f"-s3.config={keys_file}", f"-ip={self._address}", "-master.volumeSizeLimitMB=64"]
        command += [
            "-volume.max=0",
            "-master.electionTimeout=1s",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-filer.localSocket={self._folder}/filer.sock",
            f"-s3.localSocket={self._folder}/s3.sock",
        ]
        for service in SERVICES:
            command += [f"-{service}.port={self._ports[service]}", f"-{service}.port.grpc={self._grpc_ports[service]}"]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder)
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            assert self._process.poll() is None, (self._folder / "server.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the server did not start in time"
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop the server; connections are refused."""
        if self._process is not None and self._process.poll() is None:
            # Ending it by SIGTERM takes a quarter of a minute.
            self._process.kill()
            self._process.wait()

    def _is_ready(self) -> bool:
        """Whether objects can be read and written; the server answers before that."""
        try:
            if not self._has_started:
                self.client.create_bucket(Bucket=READY_BUCKET)
                self.client.put_object(Bucket=READY_BUCKET, Key="object", Body=b"content")
            self.client.get_object(Bucket=READY_BUCKET, Key="object")
            self.client.put_object(Bucket=READY_BUCKET, Key="again", Body=b"content")
        except (BotoCoreError, ClientError):
            return False
        self._has_started = True
        return True
