"""TLS between the pods of a Ray cluster: what KubeRay's `tlsOptions` and cert-manager do."""

import subprocess
from pathlib import Path

from tests.multinode.documents import Document
from tests.multinode.pods import Namespace, full_name

VOLUME, FOLDER = "ray-tls", "/etc/ray/tls"
ENVIRONMENT = {
    "RAY_USE_TLS": "1",
    "RAY_TLS_SERVER_CERT": f"{FOLDER}/tls.crt",
    "RAY_TLS_SERVER_KEY": f"{FOLDER}/tls.key",
    "RAY_TLS_CA_CERT": f"{FOLDER}/ca.crt",
}


class ClusterCertificates:
    """The certificates of a cluster's head and workers, signed by an authority of its own, in secrets of the namespace.

    Like KubeRay, each gets the address of every pod before the pod starts.
    """

    def __init__(self, namespace: Namespace, cluster: str, head_service: str) -> None:
        self._namespace, self._cluster = namespace, cluster
        self._folder = namespace.folder / "certificates" / cluster
        self._folder.mkdir(parents=True)
        self._names = {
            "head": ["DNS:localhost", f"DNS:{full_name(head_service)}", "IP:127.0.0.1"],
            "worker": ["DNS:localhost", "IP:127.0.0.1"],
        }
        authority = ["-x509", "-days", "2", "-subj", f"/CN=ray-ca-{cluster}", "-out", "ca.crt"]
        run_openssl(self._folder, *new_key("ca"), *authority)
        for role in self._names:
            run_openssl(self._folder, *new_key(role), "-subj", "/CN=ray", "-out", f"{role}.csr")

    def add_to(self, spec: Document, role: str, address: str) -> Document:
        """A spec of the pod at an address, as "head" or "worker", with its certificate."""
        self._names[role].append(f"IP:{address}")
        (self._folder / "names").write_text("subjectAltName=" + ",".join(self._names[role]))
        authority = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"]
        request = ["-req", "-in", f"{role}.csr", "-extfile", "names", "-out", f"{role}.crt"]
        run_openssl(self._folder, "x509", *authority, *request)
        secret = f"ray-{role}-secret-{self._cluster}"
        files = {"tls.crt": f"{role}.crt", "tls.key": f"{role}.key", "ca.crt": "ca.crt"}
        self._namespace.secrets[secret] = {key: (self._folder / file).read_text() for key, file in files.items()}
        (container,) = spec["containers"]
        mount = {"name": VOLUME, "mountPath": FOLDER, "readOnly": True}
        container = container | {"volumeMounts": [*container.get("volumeMounts", []), mount]}
        volume = {"name": VOLUME, "secret": {"secretName": secret}}
        return spec | {"containers": [container], "volumes": [*spec.get("volumes", []), volume]}


def new_key(name: str) -> list[str]:
    """The arguments of openssl that make a key and a request for a certificate."""
    return ["req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key"]


def run_openssl(folder: Path, *arguments: str) -> None:
    """Run openssl in a folder."""
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=30)
