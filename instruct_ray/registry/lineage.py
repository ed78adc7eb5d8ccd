"""The lineage of a version: the way from its weights back to source files and rows, stored with the version."""

import subprocess
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

import instruct_ray
from instruct_ray.data.ledger import OUTCOME_COLUMN, read_entries
from instruct_ray.data.open_run import OpenRun
from instruct_ray.data.packs.dataset import PackedDataset, finished_pack_dirs

# Files of a version.
LINEAGE_FILE = "lineage.json"
ROWS_FILE = "rows.parquet"
# The columns of `rows.parquet` that come from the ledger. It has no text and no digest of a row.
ROW_COLUMNS = ("row_id", OUTCOME_COLUMN, "copies")
GIT_SECONDS = 10


class SourceFile(BaseModel):
    """A source file of the packs. Its index in `PacksLineage.sources` is the file number of row ids."""

    model_config = ConfigDict(frozen=True)

    name: str
    sha256: str


class PacksLineage(BaseModel):
    """The packs that a version was trained on."""

    model_config = ConfigDict(frozen=True)

    digest: str
    num_read: int
    outcomes: dict[str, int]
    """Input rows by outcome, see `RowOutcome`."""
    sources: tuple[SourceFile, ...]


class Lineage(BaseModel):
    """The content of `lineage.json`."""

    model_config = ConfigDict(frozen=True)

    run: str
    mlflow_run_id: str
    instruct_ray_version: str
    git_commit: str | None
    """Of instruct_ray, with `-dirty` if files were changed; None where it was not installed from a clone."""
    base: str
    base_digest: str
    form: str
    """`full`, `adapter` or `merged`."""
    contract_digest: str
    config: dict[str, Any]
    packs: PacksLineage | None
    """None if the run's packs were removed before it was registered."""


def build_lineage(run: OpenRun, metadata: dict[str, Any], mlflow_run_id: str) -> Lineage:
    """Build the lineage of a run from its model's metadata and its packs."""
    return Lineage(
        run=run.config.run.name,
        mlflow_run_id=mlflow_run_id,
        instruct_ray_version=installed_version("instruct-ray"),
        git_commit=_git_commit(),
        base=metadata["base"],
        base_digest=metadata["base_digest"],
        form=metadata["form"],
        contract_digest=metadata["contract_digest"],
        config=run.config.model_dump(mode="json", exclude={"serving", "registry"}),
        packs=_packs_lineage(run.packs.manifest) if finished_pack_dirs(run.folder) else None,
    )


def write_rows(packs: PackedDataset, path: Path) -> None:
    """Write the outcome of every input row of the packs, so that a version can be traced to rows without its run."""
    schema = pa.schema({"row_id": pa.string(), OUTCOME_COLUMN: pa.string(), "copies": pa.int32()})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in read_entries(packs.path, *ROW_COLUMNS):
            writer.write_table(pa.Table.from_batches([batch]).select(schema.names).cast(schema))


def find_rows(path: Path, row_ids: list[str]) -> dict[str, tuple[str, int]]:
    """Find rows in a `rows.parquet`: outcome and copies by row id. Rows that were not read are missing."""
    wanted, found = pa.array(row_ids, pa.string()), dict[str, tuple[str, int]]()
    for batch in pq.ParquetFile(path).iter_batches(columns=list(ROW_COLUMNS)):
        for row in batch.filter(pc.is_in(batch["row_id"], value_set=wanted)).to_pylist():
            found[row["row_id"]] = (row[OUTCOME_COLUMN], row["copies"])
    return found


def _packs_lineage(manifest: dict[str, Any]) -> PacksLineage:
    return PacksLineage(
        digest=manifest["digest"],
        num_read=manifest["num_read"],
        outcomes=manifest["fates"],
        sources=tuple(SourceFile(name=one["name"], sha256=one["sha256"]) for one in manifest["sources"]),
    )


def _git_commit() -> str | None:
    """The commit of the clone that holds this package; None if git does not know its files."""
    package = Path(instruct_ray.__file__).parent
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        for command in (["ls-files", "--error-unmatch", "errors.py"], describe):
            result = subprocess.run(
                ["git", "-C", str(package), *command], capture_output=True, text=True, check=True, timeout=GIT_SECONDS
            )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
