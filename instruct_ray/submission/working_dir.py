"""The folder that a job gets as its working directory: its size, measured before Ray packs and sends it."""

import logging
import os
from collections import Counter
from pathlib import Path

from ray._private.ray_constants import (
    DASHBOARD_CLIENT_MAX_SIZE,
    RAY_RUNTIME_ENV_IGNORE_GITIGNORE,
    get_runtime_env_default_excludes,
)
from ray._private.runtime_env import packaging

from instruct_ray.errors import InputError

NUM_LARGEST = 3
MIB = 2**20


def check_working_dir(folder: Path) -> None:
    """Check that Ray's dashboard takes a folder as working directory.

    Raises:
        InputError: it is no folder, or what would be sent is too large. The message names the largest parts.
    """
    if not folder.is_dir():
        raise InputError(f"--working-dir: no folder {folder}")
    sizes = _measure(folder)
    total = sum(sizes.values())
    if total <= DASHBOARD_CLIENT_MAX_SIZE:
        return
    largest = ", ".join(f"{name} ({size / MIB:,.0f} MiB)" for name, size in sizes.most_common(NUM_LARGEST))
    limit = f"{DASHBOARD_CLIENT_MAX_SIZE / MIB:.0f} MiB"
    raise InputError(
        f"--working-dir: {folder} has {total / MIB:,.0f} MiB, more than the {limit} that a cluster takes; list what "
        f"the job does not need in {folder / '.rayignore'}; largest: {largest}"
    )


def _measure(folder: Path) -> "Counter[str]":
    """Bytes that Ray would send, by the name in the folder. Ray packs without compressing."""
    sizes = Counter[str]()

    def add(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(folder).parts[0]] += path.stat().st_size

    # As Ray does it when it packs the folder.
    packaging._dir_travel(
        folder,
        [packaging._get_excludes(folder, get_runtime_env_default_excludes())],
        add,
        include_gitignore=os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1",
        logger=logging.getLogger(__name__),
    )
    return sizes
