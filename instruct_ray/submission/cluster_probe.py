"""Runs on the cluster, as a job before the job: tells what is there. Its text is sent, so that it needs no image.

It imports nothing but the standard library at its top: what it looks for may be missing. It reads a JSON object from
standard input, and its last line is MARKER with a JSON object.
"""

import glob
import importlib.metadata
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

MARKER = "instruct_ray probe: "


def look_up_packages(names: list[str]) -> dict[str, str | None]:
    """The installed versions of packages; None of one that is missing."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def find_missing_modules(names: list[str]) -> list[str]:
    """The modules that can't be imported."""
    return [name for name in names if not _is_module(name)]


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        # The package that it would be in is missing.
        return False


def find_missing_files(patterns: list[str]) -> list[str]:
    """The paths and globs, made absolute here, that match no file or folder."""
    paths = [str(Path(pattern).expanduser().absolute()) for pattern in patterns]
    return [path for path in paths if not glob.glob(path, recursive=True)]


def describe_cluster(address: str) -> dict[str, Any]:
    """The nodes with their resources and labels, what autoscaling may add, and where the dashboard listens.

    The cluster is asked without joining it: Ray would list a job that joined for ever.
    """
    import ray  # noqa: PLC0415  (may be missing, like the others)
    from ray._private import ray_constants  # noqa: PLC0415
    from ray._private.state import GlobalState  # noqa: PLC0415

    state = GlobalState()
    state._initialize_global_state(
        ray._raylet.GcsClientOptions.create(address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
    )
    nodes = [
        {"id": node["NodeID"], "name": node["NodeName"], "resources": node["Resources"], "labels": node["Labels"]}
        for node in state.node_table()
        if node["Alive"]
    ]
    dashboard = ray._raylet.GcsClient(address=address).internal_kv_get(
        ray_constants.DASHBOARD_ADDRESS.encode(), ray_constants.KV_NAMESPACE_DASHBOARD
    )
    most = state.get_max_resources_from_cluster_config()
    return {"nodes": nodes, "most": most, "dashboard": (dashboard or b"").decode()}


def main() -> None:
    """Answer the question on standard input."""
    question = json.load(sys.stdin)
    packages = look_up_packages(question["packages"])
    answer: dict[str, Any] = {
        "python": sys.version.split()[0],
        "folder": str(Path.cwd()),
        "packages": packages,
        "missing_modules": find_missing_modules(question["modules"]),
        "missing_files": find_missing_files(question["files"]),
    }
    if packages.get("ray"):
        answer |= describe_cluster(os.environ["RAY_ADDRESS"])
    print(MARKER + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
