"""The manifest of an output folder: what its answers were generated from, and how far the generation got."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from instruct_ray.errors import InputError
from instruct_ray.files import atomic_write_json
from instruct_ray.inference.offline.inputs import BATCH_BYTES, BATCH_ROWS

# Hidden, so that tools that read the folder as a data set skip it.
MANIFEST_FILE = ".generate.json"


class OutputSpec(BaseModel):
    """Everything that decides the content of the output."""

    model_config = ConfigDict(frozen=True)

    model_digest: str
    input_digest: str
    """Over the content of the source files and the options for reading them."""
    max_new_tokens: int
    only_labels: bool = False
    part_limits: tuple[int, int] = (BATCH_ROWS, BATCH_BYTES)


class GenerationManifest(BaseModel):
    """The content of the manifest file."""

    model_config = ConfigDict(frozen=True)

    request: OutputSpec
    part_rows: dict[str, int] | None = None
    """Rows per part file; None until the rows are counted."""
    counts: dict[str, int] | None = None
    """Rows by finish reason, or by the reason why there is no answer; None until the output is complete."""
    num_rows: int = 0

    def save(self, output_dir: Path) -> None:
        """Write the manifest into the output folder."""
        atomic_write_json(output_dir / MANIFEST_FILE, self.model_dump(mode="json"))


def load_manifest(output_dir: Path, spec: OutputSpec) -> GenerationManifest:
    """Load the manifest of an output folder; a new one if nothing has been generated there.

    Raises:
        InputError: the folder belongs to another output spec, holds other files, or is a URI.
    """
    if ":/" in str(output_dir):
        raise InputError(f"--output: {output_dir}: needs a folder that every node sees under the same path, not a URI")
    path = output_dir / MANIFEST_FILE
    if not path.is_file():
        if output_dir.exists() and not _is_empty_folder(output_dir):
            raise InputError(f"{output_dir}: holds other files than answers; choose another --output")
        return GenerationManifest(request=spec)
    manifest = GenerationManifest.model_validate_json(path.read_text())
    before, now = manifest.request.model_dump(), spec.model_dump()
    changes = [f"{key} was {_shorten(before[key])}, now {_shorten(now[key])}" for key in now if before[key] != now[key]]
    if changes:
        raise InputError(
            f"{output_dir}: holds answers generated with other inputs ({'; '.join(changes)}); choose another --output"
        )
    return manifest


def count_results(output_dir: Path, part_rows: dict[str, int]) -> dict[str, int]:
    """Count the output rows by finish reason, or by the reason why there is no answer.

    Raises:
        RuntimeError: a part file does not have one line per input row.
    """
    counts: Counter[str] = Counter()
    for name, num_rows in part_rows.items():
        results = list(_read_results(output_dir / name))
        if len(results) != num_rows:
            raise RuntimeError(f"{output_dir / name} has {len(results)} lines for {num_rows} rows")
        counts.update(results)
    return dict(counts)


def _read_results(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            yield record["finish_reason"] or record["reason"]


def _is_empty_folder(path: Path) -> bool:
    """Whether a path is a folder without files, except hidden ones."""
    return path.is_dir() and all(file.name.startswith(".") for file in path.iterdir())


def _shorten(value: Any) -> str:
    """Shorten a digest for a message."""
    return value[:12] if isinstance(value, str) else str(value)
