"""The `data` section: sources, and how their rows become packs."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator
from pydantic.functional_validators import BeforeValidator

from instruct_ray.config.section import Section

ColumnName = Literal["id", "instruction", "input", "output", "system", "history", "messages", "conversations"]


def _is_uri(path: str) -> bool:
    return "://" in path or path.startswith("hub:")


class SourceConfig(Section):
    """Where rows come from, and what they look like; a plain string in `data.sources` is its `path`."""

    path: str = Field(min_length=1)
    """A file (`.jsonl`, `.json`, `.csv`, each also with `.gz` or `.zst`, or `.parquet`), a folder or glob (`**` stands
    for folders in folders) of such files, a folder that `datasets` saved, the same on an object store (`s3://…`,
    `gs://…`), or `hub:NAME` for a hub data set. Keys come from the environment of every node (`AWS_ACCESS_KEY_ID`, …)
    or a role; another server than Amazon's is named by `AWS_ENDPOINT_URL`, or in the URI, where it reaches all nodes:
    `s3://bucket/key?endpoint_override=http://host:9000&region=us-east-1`."""
    format: Literal["auto", "triples", "messages", "sharegpt"] = "auto"
    """What a row is; `auto` decides by its columns."""
    columns: dict[ColumnName, str] = {}
    """Names of the source's columns, where they are not ours: `{instruction: question, output: answer}`."""
    weight: PositiveFloat = 1.0
    """Copies of each training row: 2.5 trains every row twice and half of them a third time, chosen by the seed."""
    split: str = "train"
    """Split of a data set of `datasets`."""
    subset: str | None = None
    """Named configuration of a hub data set."""

    @field_validator("path")
    @classmethod
    def _absolute_path(cls, path: str) -> str:
        return path if _is_uri(path) else str(Path(path).expanduser().absolute())


def _as_source(value: object) -> object:
    return {"path": str(value)} if isinstance(value, str | Path) else value


class DataConfig(Section):
    """Triples and how they become packs."""

    sources: tuple[Annotated[SourceConfig, BeforeValidator(_as_source)], ...] = Field(min_length=1)
    """Where the rows come from: paths, or `{path, format, columns, weight, …}`."""
    test_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the rows held out for evidence, chosen by a hash of the input."""
    validation_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the rows held out for `train.validation`, chosen alike: no part of the evidence, which a choice between
    checkpoints would flatter."""
    system_prompt: str | None = None
    """System message of every prompt, in training and serving; null leaves it to the base's chat template."""
    max_tokens: PositiveInt = 2048
    """Longest row, in tokens."""
    too_long: Literal["drop", "cut"] = "drop"
    """What happens to a longer row: it is left out, or its input is cut at the end; the answer never is. Counted."""
    pack_tokens: PositiveInt = 2048
    """Tokens of one pack: what one forward pass computes."""
    max_bad_fraction: float = Field(default=0.01, ge=0, lt=1)
    """Share of rows that may be unusable and are set aside; more stops the preparation and shows why."""
    max_row_bytes: PositiveInt = 8 * 1024 * 1024
    """Longest line or field of a source, in bytes; a longer one is set aside unread."""
    near_duplicates: float | None = Field(default=0.8, gt=0, lt=1)
    """Training rows whose input resembles a held-out one this much (Jaccard similarity of its 5-character pieces) are
    left out, so that the evidence is not about rows seen in training; null does not look for them."""

    @model_validator(mode="after")
    def _leaves_rows_to_train_on(self) -> "DataConfig":
        if self.test_fraction + self.validation_fraction >= 1:
            raise ValueError("test_fraction and validation_fraction together leave no row to train on")
        return self
