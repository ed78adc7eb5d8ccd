"""worker, rank 0: tells the driver what is wrong with the run's storage, by another way than the storage.

The notice is a value in the key-value store of Ray's head node. That store is not a public interface of Ray, so nothing
else touches it.
"""

import hashlib
from pathlib import Path

from ray.experimental import internal_kv

NAMESPACE = "instruct_ray"


def publish_storage_problem(run_dir: Path, problem: str | None) -> None:
    """Replace the notice of a run; None if its storage works. Does nothing outside a Ray cluster."""
    if not internal_kv._internal_kv_initialized():
        return
    if problem is None:
        internal_kv._internal_kv_del(_key(run_dir), namespace=NAMESPACE)
    else:
        internal_kv._internal_kv_put(_key(run_dir), problem, namespace=NAMESPACE)


def read_storage_problem(run_dir: Path) -> str | None:
    """Read the notice of a run, in the driver; None if there is none."""
    value = internal_kv._internal_kv_get(_key(run_dir), namespace=NAMESPACE)
    return None if value is None else value.decode()


def _key(run_dir: Path) -> str:
    return f"storage:{hashlib.sha256(str(run_dir).encode()).hexdigest()}"
