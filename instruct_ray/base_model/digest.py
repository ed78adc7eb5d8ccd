"""sha256 digest of a model folder's content, kept in a cache outside the folder until one of its files changes."""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from instruct_ray.files import atomic_write_json, sha256_file

WEIGHTS = "*.safetensors"
# Environment variable with the folder of the cache. Nodes that share it compute each digest once.
CACHE_ENV = "INSTRUCT_RAY_CACHE"
# A file that changed this recently could change again without a new time stamp: those of some file systems (NFS, FAT)
# are this coarse.
SETTLED_SECONDS = 2.0


def folder_digest(folder: Path) -> str:
    """Compute the sha256 over a model folder's weights, configuration and tokenizer.

    Reading all weights takes a while, so the digest is cached with the size, the times and the inode of each file.
    Nothing inside the folder is believed about its own digest.
    """
    files = sorted({*folder.glob(WEIGHTS), folder / "config.json", *folder.glob("tokenizer*"), *folder.glob("*.jinja")})
    cache_file, states = _cache_file(folder), [_file_state(file) for file in files]
    cached = _read_cache(cache_file)
    if cached.get("files") == states:
        return str(cached["digest"])
    digest = hashlib.sha256(json.dumps([[file.name, sha256_file(file)] for file in files]).encode()).hexdigest()
    if states == [_file_state(file) for file in files] and _are_settled(files):
        # Without a cache, for example in a read-only container, every call computes the digest.
        with suppress(OSError):
            atomic_write_json(cache_file, {"folder": str(folder), "files": states, "digest": digest})
    return digest


def _cache_file(folder: Path) -> Path:
    cache = Path(os.environ.get(CACHE_ENV) or Path.home() / ".cache" / "instruct_ray")
    return cache / "digests" / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()}.json"


def _file_state(file: Path) -> list[Any]:
    """What changes with the content of a file; the change time also where a copy restores the modification time."""
    state = file.stat()
    return [file.name, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]


def _are_settled(files: list[Path]) -> bool:
    return all(time.time() - file.stat().st_ctime > SETTLED_SECONDS for file in files)


def _read_cache(path: Path) -> dict[str, Any]:
    """The cached digest of a folder; empty if there is none, or if it can't be read."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
