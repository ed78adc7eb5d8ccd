"""Sources: every file format, folders, globs, the hub, and the errors of what can't be read."""

import bz2
import gzip
import json
import os
import re
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
from instruct_ray.data.sources.files import file_digests, find_source_files, list_sources, split_into_chunks
from instruct_ray.errors import InputError
from tests.data.sources.read_all import GOOD, find_files, make_data_config, read_all_records, read_all_values
from tests.fakes import fail_if_ray_starts

ROWS = [GOOD, {**GOOD, "input": 'é "quoted", two\nlines'}, {**GOOD, "output": "Low"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = b'instruction,input,output\r\nRate,x,High\r\nRate,"\xc3\xa9 ""quoted"", two\nlines",High\r\nRate,x,Low\r\n'
TSV = CSV.replace(b",", b"\t").replace(b"\t two", b", two")
COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstandard.compress}


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def find_names(pattern: Path | str) -> list[str]:
    return [file.name for file in find_files(pattern)]


@pytest.mark.parametrize("compression", list(COMPRESS))
@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".jsonl", LINES),
        (".ndjson", LINES),
        (".json", json.dumps(ROWS, indent=1).encode()),
        (".csv", CSV),
        (".tsv", TSV),
    ],
)
def test_reads_every_text_format(tmp_path: Path, suffix: str, content: bytes, compression: str) -> None:
    path = write(tmp_path / f"a{suffix}{compression}", COMPRESS[compression](content))
    assert read_all_values(path) == ROWS


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_reads_all_members_of_compressed_file(tmp_path: Path, suffix: str) -> None:
    half = LINES.index(b"\n") + 1
    content = COMPRESS[suffix](LINES[:half]) + COMPRESS[suffix](LINES[half:])
    assert read_all_values(write(tmp_path / f"a.jsonl{suffix}", content)) == ROWS


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
@pytest.mark.parametrize("corrupt", [lambda content: content[:-9], lambda content: b"hello\n"])
def test_corrupted_compression_is_an_error(tmp_path: Path, suffix: str, corrupt: Callable[[bytes], bytes]) -> None:
    content = os.urandom(2000).hex().encode()
    path = write(tmp_path / f"a.jsonl{suffix}", corrupt(COMPRESS[suffix](content)))
    with pytest.raises(InputError, match="can't be read") as error:
        read_all_records(path)
    assert str(path) in str(error.value)


def test_parquet_chunks_are_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**GOOD, "input": f"x{n}", "history": None} for n in range(10)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=3)
    monkeypatch.setattr(sources, "CHUNK_BYTES", 1)
    assert [(chunk.start, chunk.end) for chunk in split_into_chunks(find_files(tmp_path))] == [
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 4),
    ]
    records = read_all_records(tmp_path)
    assert [record.position for record in records] == list(range(10))
    assert [record.value["input"] for record in records] == [row["input"] for row in rows]


def test_folders_and_globs_find_only_data_files(tmp_path: Path) -> None:
    folder = tmp_path / "my data"
    for name in ("b [1].jsonl", "a.csv.gz", "deep/er/c.json", "x.jsonl/d.jsonl", ".hidden.jsonl", "_meta/e.jsonl"):
        write(folder / name, b"-")
    for name in ("README.md", "notes.txt.gz", ".cache/f.jsonl"):
        write(folder / name, b"-")
    write(folder / "empty.jsonl", b"")
    assert find_names(folder) == ["a.csv.gz", "b [1].jsonl", "c.json", "d.jsonl"]
    listing = list_sources(make_data_config(folder).sources, tmp_path)
    assert listing.passed_over == ["README.md (not a data file)", "notes.txt.gz (not a data file)"]
    assert find_names(folder / "x.jsonl") == ["d.jsonl"]
    assert find_names(folder / "*.jsonl") == ["b [1].jsonl"]
    assert find_names(folder / "**/*.js*") == ["b [1].jsonl", "c.json", "d.jsonl"]
    assert find_names(folder / "[x]*/?.jsonl") == ["d.jsonl"]
    assert find_names(folder / "b [1].jsonl") == ["b [1].jsonl"], "an existing file is not taken as a glob"


def test_suffixes_are_recognized_whatever_their_case(tmp_path: Path) -> None:
    for name, content in (("A.JSONL", LINES), ("b.Json", json.dumps(ROWS).encode()), ("C.CSV", CSV), ("d.Tsv", TSV)):
        write(tmp_path / name, content)
    write(tmp_path / "E.JSONL.BZ2", bz2.compress(LINES))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "F.PARQUET")
    assert read_all_values(tmp_path) == ROWS * 6
    assert all(read_all_values(path) == ROWS for path in tmp_path.iterdir())


def test_what_is_not_read_is_said_in_one_line(tmp_path: Path) -> None:
    for number in range(9):
        write(tmp_path / f"sheet{number}.xlsx", b"x")
    write(tmp_path / "a.jsonl", LINES)
    listing = list_sources(make_data_config(tmp_path).sources, tmp_path)
    text = listing.describe_passed_over()
    assert text.startswith("sheet0.xlsx (not a data file), sheet1.xlsx") and text.endswith(" and 3 more")


SPLIT_FILES = [
    ["train.jsonl", "test.jsonl", "validation.jsonl"],
    ["Train.jsonl.gz", "DEV.jsonl.gz", "eval.jsonl.gz"],
    ["chats-train.jsonl", "chats-val.jsonl", "chats_test_2.jsonl"],
    ["training_data.jsonl", "dev.de.jsonl", "test_set.jsonl"],
    ["train/a.jsonl", "test/b.jsonl", "deep/valid/c.jsonl"],
    ["data/train-00000-of-00001-0a1b.jsonl", "data/test-00000-of-00001-0a1b.jsonl", "dataset_infos.json"],
    ["part1.jsonl", "part2.jsonl", "test.jsonl"],
]


@pytest.mark.parametrize("names", SPLIT_FILES)
@pytest.mark.parametrize("pattern", ["", "**/*.js*"])
def test_files_of_other_splits_are_not_read(tmp_path: Path, names: list[str], pattern: str) -> None:
    compress = gzip.compress if names[0].endswith("gz") else bytes
    for name in names:
        write(tmp_path / "in" / name, compress(b"{}" if name.endswith(".json") else LINES))
    listing = list_sources(make_data_config(tmp_path / "in" / pattern).sources, tmp_path)
    read = [file.name for file in listing.files]
    is_other = re.compile(r"test|val|dev|eval|dataset_infos", re.IGNORECASE)
    assert sorted(read) == sorted(Path(name).name for name in names if not is_other.search(name))
    assert sorted(text.split(" (")[0] for text in listing.passed_over) == sorted(
        {Path(n).name for n in names} - {*read}
    )
    test = list_sources(make_data_config(tmp_path / "in" / pattern, split="test").sources, tmp_path)
    assert len(test.files) == 1 and re.search("test|eval", test.files[0].uri)


@pytest.mark.parametrize(
    "names",
    [
        ["dev-ops.jsonl", "test plans.jsonl", "contest.jsonl", "latest.jsonl", "trainers.jsonl"],
        ["part-00000-of-00002.jsonl", "part-00001-of-00002.jsonl"],
        ["test.jsonl"],
        ["test1.jsonl", "test2.jsonl"],
    ],
)
def test_files_of_one_split_or_none_are_all_read(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        write(tmp_path / name, LINES)
    assert sorted(find_names(tmp_path)) == sorted(names)


def test_missing_split_is_named_with_those_there_are(tmp_path: Path) -> None:
    for split in ("train_sft", "test_sft", "train_gen"):
        write(tmp_path / f"data/{split}-00000-of-00001.jsonl", LINES)
    with pytest.raises(InputError, match=r"no files of split train; .* test_sft, train_gen, train_sft; set"):
        find_files(tmp_path)
    assert [file.name for file in find_files(tmp_path, split="train_sft")] == ["train_sft-00000-of-00001.jsonl"]
    assert len(find_files(tmp_path / "data" / "test_sft*")) == 1, "a file that the user names is read"


def test_files_are_numbered_across_sources(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        write(tmp_path / name, LINES)
    entries = [*make_data_config(tmp_path / "b.jsonl").sources, *make_data_config(tmp_path).sources]
    files = find_source_files(entries, tmp_path)
    assert [(file.number, file.source, file.name) for file in files] == [
        (0, 0, "b.jsonl"),
        (1, 1, "a.jsonl"),
        (2, 1, "b.jsonl"),
    ]


def test_reads_folders_saved_by_datasets(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([*ROWS * 500]).select(range(3))
    rows.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict({"train": rows, "test": rows.select([2])}).save_to_disk(tmp_path / "two")
    assert read_all_values(tmp_path / "one") == read_all_values(tmp_path / "two") == ROWS
    assert read_all_values(tmp_path / "two", split="test") == ROWS[2:]
    with pytest.raises(InputError, match="has no split validation; it has train, test"):
        find_files(tmp_path / "two", split="validation")
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(InputError, match="lacks its file"):
        find_files(tmp_path / "one")
    (tmp_path / "two" / "dataset_dict.json").write_text("[1]")
    with pytest.raises(InputError, match="two is not a data set as `datasets` saves it"):
        find_files(tmp_path / "two")


def test_hub_data_set_is_downloaded_once(tmp_path: Path) -> None:
    write(tmp_path / "repo" / "train.jsonl", LINES)
    entries = make_data_config(f"hub:{tmp_path / 'repo'}").sources
    files = find_source_files(entries, tmp_path / "cache")
    shutil.rmtree(tmp_path / "repo")
    assert find_source_files(entries, tmp_path / "cache") == files
    assert sum(len(read_all_values(file.uri)) for file in files) == 3


def test_failed_hub_download_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^data.sources: hub:no/such-set can't be downloaded from the hub: .*"
    ) as error:
        find_source_files(make_data_config("hub:no/such-set").sources, tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def unreadable_file() -> Iterator[Path]:
    """Yields a file that may not be read, as a user who is not root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    write(folder / "a.jsonl", LINES).chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield folder / "a.jsonl"
    os.seteuid(user)
    shutil.rmtree(folder)


def test_unreadable_file_is_named(unreadable_file: Path) -> None:
    with pytest.raises(InputError, match="Permission denied") as error:
        file_digests(find_files(unreadable_file))
    assert str(unreadable_file) in str(error.value)


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("none.jsonl", {}, "no file"),
        ("no*.jsonl", {}, "no file matches"),
        ("nowhere/*.jsonl", {}, "no file matches"),
        ("a.txt", {"a.txt": b"x"}, "unknown suffix; known are .jsonl, .ndjson, .json, .csv, .parquet"),
        ("*.txt", {"a.txt": b"x"}, "unknown suffix"),
        ("a.gz", {"a.gz": b"x"}, "unknown suffix"),
        ("a.parquet.gz", {"a.parquet.gz": b"x"}, "can't be read from .gz; decompress the file"),
        ("a.parquet", {"a.parquet": b"PAR1 but no more"}, "can't be read as Parquet"),
        ("a.jsonl", {"a.jsonl": b""}, "is empty"),
        ("blank.jsonl", {"blank.jsonl": b"\n \r\n\n"}, "no rows in"),
        ("none.jsonl.gz", {"none.jsonl.gz": gzip.compress(b"")}, "no rows in"),
        ("head.csv", {"head.csv": b"instruction,output\n"}, "no rows in"),
        ("folder", {"folder/README.md": b"x"}, r"no .jsonl, .* file in folder"),
        ("folder", {"folder/a.jsonl": b""}, "is empty"),
        ("a.jsonl", {"a.jsonl": b"{}\n[1]\nx\n" * 3}, r"9 of 9 rows .*not_json 3.*a.jsonl: row 1 has no instr"),
        ("one.jsonl", {"one.jsonl": LINES[: LINES.index(b"\n")]}, "1 of 1 rows .* two are needed"),
        ("a.json", {"a.json": b'[{"instruction": 1'}, "is a broken JSON array"),
        ("a.csv", {"a.csv": b"\xff\xfei\0n\0"}, "is not UTF-8"),
        ("x.arrow", {"x.arrow": b"no arrow"}, "does not start like an Arrow stream"),
    ],
)
def test_unusable_source_is_named_before_ray_starts(
    make_config: Callable[..., Config], tmp_path: Path, name: str, files: dict[str, bytes], message: str
) -> None:
    for file, content in files.items():
        write(tmp_path / "in" / file, content)
    with pytest.raises(InputError, match=message) as error:
        prepare(make_config(data={"sources": [tmp_path / "in" / name]}), fail_if_ray_starts)
    assert str(tmp_path / "in" / name.partition("*")[0]) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("https://a.example/x.jsonl", "neither a path nor a URI that starts with one of s3://, gs://, "),
        ("s3:///x.jsonl", "has no bucket"),
        ("s3://me:secret@bucket/x.jsonl", "s3://…@bucket/x.jsonl contains a password"),
        ("s3://bucket/x.jsonl?nonsense=1", "Unexpected query parameter"),
    ],
)
def test_invalid_uri_is_an_input_error(uri: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        find_files(uri)
    assert "secret" not in str(error.value)


def test_file_uri_is_a_path(tmp_path: Path) -> None:
    write(tmp_path / "a b" / "c.jsonl", LINES)
    assert read_all_values(f"file://{tmp_path}/a b/*.jsonl") == read_all_values(f"file://{tmp_path}") == ROWS
