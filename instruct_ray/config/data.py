"""The `data` section: sources, and how their rows become packs."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator
from pydantic.functional_validators import BeforeValidator

from instruct_ray.config.section import Section

ColumnName = Literal[
    "id", "instruction", "input", "output", "system", "history", "messages", "tools", "conversations", "prompt",
    "completion",
]  # fmt: skip


def _is_uri(path: str) -> bool:
    return "://" in path or path.startswith("hub:")


class SourceConfig(Section):
    """A source of rows. A plain string in `data.sources` is short for its `path`."""

    path: str = Field(min_length=1)
    """Where the rows are: a file (`.jsonl`, `.json`, `.csv` or `.tsv`, also compressed as `.gz`, `.bz2` or `.zst`, or
    `.parquet`); a folder or glob of such files (`**` matches folders at any depth); a folder saved by `datasets`; any
    of these in an object store (`s3://...`, `gs://...`); or `hub:NAME`, a data set of the Hugging Face hub.
    Credentials come from the environment of every node (`AWS_ACCESS_KEY_ID`, ...) or from a role. For an S3-compatible
    server set `AWS_ENDPOINT_URL`, or put it in the URI, which reaches all nodes:
    `s3://bucket/key?endpoint_override=http://host:9000&region=us-east-1`."""
    format: Literal["auto", "triples", "messages", "sharegpt", "prompt_completion"] = "auto"
    """Format of the rows; `auto` detects it from the column names."""
    columns: dict[ColumnName, str] = Field(default_factory=dict)
    """Column names of the source where they differ from the expected ones: `{instruction: question, output: answer}`.
    None by default."""
    weight: PositiveFloat = 1.0
    """How often each training row is used per epoch. A fraction applies to a random part of the rows: with 2.5 each row
    is used twice, and half of them, selected by the seed, a third time. With 0.3 only 30 % of the rows are used."""
    delimiter: str | None = Field(default=None, pattern=r"^[^\"\r\n]$")
    """Character that separates the columns of a CSV file, such as `";"`; null finds it in the header, or in a line
    `sep=;` before it."""
    split: str = "train"
    """Split that is read where a source has several: in a `datasets` data set, or in a folder or glob whose files are
    named after splits (`train.jsonl` and `test.jsonl`, `data/train-00000-of-00002.parquet`). `prepare` names the files
    that are not read."""
    subset: str | None = None
    """Subset (named configuration) of a hub data set; null uses its default."""

    @field_validator("path")
    @classmethod
    def _make_path_absolute(cls, path: str) -> str:
        return path if _is_uri(path) else str(Path(path).expanduser().absolute())


def _expand_path(value: object) -> object:
    return {"path": str(value)} if isinstance(value, str | Path) else value


class DataConfig(Section):
    """Sources of the rows, the split, and how rows become packs."""

    sources: tuple[Annotated[SourceConfig, BeforeValidator(_expand_path)], ...] = Field(min_length=1)
    """Sources of the rows: paths, or mappings `{path, format, columns, weight, ...}`."""
    test_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Fraction of the rows held out for the evidence, selected by a hash of the input, so that rows with the same input
    stay together. An input of more than 5 % of the rows (`None`, `N/A`) is a placeholder: there the instruction and the
    input decide. `prepare` fails if the held-out share is far from this fraction."""
    validation_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the rows held out for `train.validation`, selected the same way. They are not used for the evidence,
    since checkpoints are selected on them."""
    train_fraction: float = Field(default=1.0, gt=0, le=1)
    """Fraction of the training rows that are trained on, selected by a hash of the input; the others are left out. A
    smaller fraction is a part of a larger one, so that runs show what more data brings."""
    system_prompt: str | None = None
    """System message of every prompt, in training and serving; null uses the default of the base model's chat template,
    if it has one."""
    labels: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(default=None, min_length=2, max_length=1000)
    """All outputs that rows may have, for rows whose output is a label. Rows with another output are quarantined, and
    `serving.only_labels` and `evidence.only_labels` make every answer one of them. Null for other rows."""
    max_tokens: PositiveInt = 2048
    """Maximum length of a row, in tokens. A row within it that is longer than the positions of the base model (GPT-2,
    OPT, ...) is quarantined."""
    too_long: Literal["drop", "cut"] = "drop"
    """What to do with longer rows: `drop` skips them, `cut` truncates the end of their input, never their output. The
    report counts them."""
    pack_tokens: PositiveInt = 2048
    """Size of a pack, in tokens: the most that one forward pass computes."""
    max_bad_fraction: float = Field(default=0.01, ge=0, lt=1)
    """Fraction of the rows that may be quarantined because they can't be used; if there are more, `prepare` fails and
    shows why."""
    max_row_bytes: PositiveInt = 8 * 1024 * 1024
    """Maximum size of a line or field of a source, in bytes; larger rows are quarantined without being parsed. The
    default is 8 MiB."""
    near_duplicates: float | None = Field(default=0.8, gt=0, lt=1)
    """Similarity (Jaccard, of 5-character shingles) from which a training row counts as a near duplicate of a held-out
    row and is skipped, so that the evidence measures unseen rows. Null disables the search."""

    @model_validator(mode="after")
    def _check_fractions(self) -> "DataConfig":
        if self.test_fraction + self.validation_fraction >= 1:
            raise ValueError("test_fraction and validation_fraction together leave no row to train on")
        if padded := [label for label in self.labels or () if label != label.strip()]:
            raise ValueError(f"labels: {padded[0]!r} begins or ends with white space")
        if self.labels and (repeated := [label for label in self.labels if self.labels.count(label) > 1]):
            raise ValueError(f"labels: {repeated[0]!r} is there twice")
        return self
