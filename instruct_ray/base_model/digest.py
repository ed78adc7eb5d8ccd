"""sha256 digest of a model folder's content."""

import hashlib
import json
from pathlib import Path

from instruct_ray.files import atomic_write_json, sha256_file

WEIGHTS = "*.safetensors"
# In model folders that never change again: their digest, computed once.
DIGEST_FILE = "digest.json"


def folder_digest(folder: Path, *, cache: bool = False) -> str:
    """Compute the sha256 over a model folder's weights, configuration and tokenizer.

    `cache` also writes the digest into the folder, where later calls read it. Only for folders that never change.
    """
    cached = folder / DIGEST_FILE
    if cached.is_file():
        return str(json.loads(cached.read_text())["digest"])
    files = sorted({*folder.glob(WEIGHTS), folder / "config.json", *folder.glob("tokenizer*"), *folder.glob("*.jinja")})
    digest = hashlib.sha256(json.dumps([[file.name, sha256_file(file)] for file in files]).encode()).hexdigest()
    if cache:
        atomic_write_json(cached, {"digest": digest})
    return digest
