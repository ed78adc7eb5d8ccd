"""Where rows come from: every kind of file, folder and glob, and a clear word about what can't be read."""

import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from instruct_ray.config.schema import Config
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.data.sources import files as sources
from instruct_ray.data.sources.files import file_digests, find_source_files, split_into_chunks
from instruct_ray.errors import InputError
from tests.data.sources.read_all import GOOD, config_of, files_of, records_of, values_of
from tests.fakes import never_start

ROWS = [GOOD, {**GOOD, "input": 'é "quoted", two\nlines'}, {**GOOD, "output": "Low"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = b'instruction,input,output\r\nRate,x,High\r\nRate,"\xc3\xa9 ""quoted"", two\nlines",High\r\nRate,x,Low\r\n'
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names_of(pattern: Path | str) -> list[str]:
    return [file.name for file in files_of(pattern)]


@pytest.mark.parametrize("compression", list(PACK))
@pytest.mark.parametrize(
    ("suffix", "content"),
    [(".jsonl", LINES), (".ndjson", LINES), (".json", json.dumps(ROWS, indent=1).encode()), (".csv", CSV)],
)
def test_every_kind_of_text_is_read(tmp_path: Path, suffix: str, content: bytes, compression: str) -> None:
    path = write(tmp_path / f"a{suffix}{compression}", PACK[compression](content))
    assert values_of(path) == ROWS


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_members_behind_each_other_are_all_read(tmp_path: Path, suffix: str) -> None:
    half = LINES.index(b"\n") + 1
    content = PACK[suffix](LINES[:half]) + PACK[suffix](LINES[half:])
    assert values_of(write(tmp_path / f"a.jsonl{suffix}", content)) == ROWS


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: b"hello\n"])
def test_damaged_compression_is_an_error_not_an_end(
    tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes]
) -> None:
    content = os.urandom(2000).hex().encode()
    path = write(tmp_path / f"a.jsonl{suffix}", damage(PACK[suffix](content)))
    with pytest.raises(InputError, match="can't be read") as error:
        records_of(path)
    assert str(path) in str(error.value)


def test_parquet_is_read_by_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**GOOD, "input": f"x{n}", "history": None} for n in range(10)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=3)
    monkeypatch.setattr(sources, "CHUNK_BYTES", 1)
    assert [(c.start, c.end) for c in split_into_chunks(files_of(tmp_path))] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    records = records_of(tmp_path)
    assert [record.position for record in records] == list(range(10))
    assert [record.value["input"] for record in records] == [row["input"] for row in rows]


def test_folders_and_globs_find_data_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "my data"
    for name in ("b [1].jsonl", "a.csv.gz", "deep/er/c.json", "x.jsonl/d.jsonl", ".hidden.jsonl", "_meta/e.jsonl"):
        write(folder / name, b"-")
    for name in ("README.md", "notes.txt.gz", ".cache/f.jsonl"):
        write(folder / name, b"-")
    write(folder / "empty.jsonl", b"")
    assert names_of(folder) == ["a.csv.gz", "b [1].jsonl", "c.json", "d.jsonl"]
    assert names_of(folder / "x.jsonl") == ["d.jsonl"]
    assert names_of(folder / "*.jsonl") == ["b [1].jsonl"]
    assert names_of(folder / "**/*.js*") == ["b [1].jsonl", "c.json", "d.jsonl"]
    assert names_of(folder / "[x]*/?.jsonl") == ["d.jsonl"]
    assert names_of(folder / "b [1].jsonl") == ["b [1].jsonl"], "a file that is there is no glob"


def test_files_of_all_sources_are_numbered_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        write(tmp_path / name, LINES)
    entries = [*config_of(tmp_path / "b.jsonl").sources, *config_of(tmp_path).sources]
    found = find_source_files(entries, tmp_path)
    assert [(file.number, file.source, file.name) for file in found] == [
        (0, 0, "b.jsonl"),
        (1, 1, "a.jsonl"),
        (2, 1, "b.jsonl"),
    ]


def test_folders_that_datasets_saved_are_read(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([*ROWS * 500]).select(range(3))
    rows.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict({"train": rows, "test": rows.select([2])}).save_to_disk(tmp_path / "two")
    assert values_of(tmp_path / "one") == values_of(tmp_path / "two") == ROWS
    assert values_of(tmp_path / "two", split="test") == ROWS[2:]
    with pytest.raises(InputError, match="has no split validation; it has train, test"):
        files_of(tmp_path / "two", split="validation")
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(InputError, match="lacks its file"):
        files_of(tmp_path / "one")
    (tmp_path / "two" / "dataset_dict.json").write_text("[1]")
    with pytest.raises(InputError, match="two is no data set as `datasets` saves it"):
        files_of(tmp_path / "two")


def test_hub_data_sets_are_kept_as_fetched(tmp_path: Path) -> None:
    write(tmp_path / "repo" / "train.jsonl", LINES)
    entries = config_of(f"hub:{tmp_path / 'repo'}").sources
    first = find_source_files(entries, tmp_path / "cache")
    shutil.rmtree(tmp_path / "repo")
    assert find_source_files(entries, tmp_path / "cache") == first
    assert sum(len(values_of(file.uri)) for file in first) == 3


def test_a_hub_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data.sources: hub:no/such-set did not come from the hub: .*") as error:
        find_source_files(config_of("hub:no/such-set").sources, tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def without_permission() -> Iterator[Path]:
    """A file of root's, and a user who is not root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    write(folder / "a.jsonl", LINES).chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield folder / "a.jsonl"
    os.seteuid(user)
    shutil.rmtree(folder)


def test_a_file_without_permission_is_named(without_permission: Path) -> None:
    with pytest.raises(InputError, match="Permission denied") as error:
        file_digests(files_of(without_permission))
    assert str(without_permission) in str(error.value)


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("none.jsonl", {}, "no file"),
        ("no*.jsonl", {}, "no file matches"),
        ("nowhere/*.jsonl", {}, "no file matches"),
        ("a.txt", {"a.txt": b"x"}, "is none of .jsonl, .ndjson, .json, .csv, .parquet"),
        ("*.txt", {"a.txt": b"x"}, "is none of"),
        ("a.gz", {"a.gz": b"x"}, "is none of"),
        ("a.parquet.gz", {"a.parquet.gz": b"x"}, "compressed inside; unpack the .gz"),
        ("a.parquet", {"a.parquet": b"PAR1 but no more"}, "is not readable as Parquet"),
        ("a.jsonl", {"a.jsonl": b""}, "is empty"),
        ("blank.jsonl", {"blank.jsonl": b"\n \r\n\n"}, "no rows in"),
        ("none.jsonl.gz", {"none.jsonl.gz": gzip.compress(b"")}, "no rows in"),
        ("head.csv", {"head.csv": b"instruction,output\n"}, "no rows in"),
        ("folder", {"folder/README.md": b"x"}, r"no .jsonl, .* file in folder"),
        ("folder", {"folder/a.jsonl": b""}, "is empty"),
        ("bad.jsonl", {"bad.jsonl": b"{}\n[1]\nx\n" * 3}, r"9 of 9 rows .*not_json 3.*bad.jsonl: row 1 has no instr"),
        ("one.jsonl", {"one.jsonl": LINES[: LINES.index(b"\n")]}, "1 of 1 rows .* two are needed"),
        ("a.json", {"a.json": b'[{"instruction": 1'}, "is a broken JSON array"),
        ("a.csv", {"a.csv": b"\xff\xfei\0n\0"}, "is not UTF-8"),
        ("x.arrow", {"x.arrow": b"no arrow"}, "does not begin as an Arrow stream does"),
    ],
)
def test_what_can_not_be_read_is_named_before_ray_starts(
    make_config: Callable[..., Config], tmp_path: Path, name: str, files: dict[str, bytes], message: str
) -> None:
    for file, content in files.items():
        write(tmp_path / "in" / file, content)
    with pytest.raises(InputError, match=message) as error:
        prepare(make_config(data={"sources": [tmp_path / "in" / name]}), never_start)
    assert str(tmp_path / "in" / name.partition("*")[0]) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("https://a.example/x.jsonl", r"a path or one of s3://, gs://, .* is needed"),
        ("s3:///x.jsonl", "names no bucket"),
        ("s3://me:secret@bucket/x.jsonl", "s3://…@bucket/x.jsonl holds a password"),
        ("s3://bucket/x.jsonl?nonsense=1", "Unexpected query parameter"),
    ],
)
def test_addresses_that_lead_nowhere_are_said(uri: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        files_of(uri)
    assert "secret" not in str(error.value)


def test_a_file_uri_is_a_path(tmp_path: Path) -> None:
    write(tmp_path / "a b" / "c.jsonl", LINES)
    assert values_of(f"file://{tmp_path}/a b/*.jsonl") == values_of(f"file://{tmp_path}") == ROWS
