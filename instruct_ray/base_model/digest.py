"""sha256 of a model folder's content."""

import hashlib
import json
from pathlib import Path

from instruct_ray.files import atomic_write_json

WEIGHTS = "*.safetensors"
# Beside weights that nothing changes any more.
DIGEST_FILE = "digest.json"


def folder_digest(folder: Path, *, remember: bool = False) -> str:
    """sha256 over a model folder's weights, configuration and tokenizer; remembered beside them where nothing changes
    any more."""
    record = folder / DIGEST_FILE
    if record.is_file():
        return str(json.loads(record.read_text())["digest"])
    files = sorted({*folder.glob(WEIGHTS), folder / "config.json", *folder.glob("tokenizer*"), *folder.glob("*.jinja")})
    digest = hashlib.sha256(json.dumps([[file.name, _file_digest(file)] for file in files]).encode()).hexdigest()
    if remember:
        atomic_write_json(record, {"digest": digest})
    return digest


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
