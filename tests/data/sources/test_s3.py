"""Object stores: a local S3 server (SeaweedFS), read by file, folder and glob, and by the prepare stage on Ray."""

import json
import os
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instruct_ray.config.schema import Config
from instruct_ray.data.ledger import read_entries
from instruct_ray.data.open_run import open_run
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.data.prepare.source_changes import check_sources_unchanged
from instruct_ray.data.sources import files as sources
from instruct_ray.data.sources.files import file_digests, split_into_chunks
from instruct_ray.errors import InputError
from tests.data.sources.read_all import GOOD, find_files, read_all_records, read_all_values
from tests.fakes import fail_if_ray_starts, ray_is_running
from tests.s3_server import KEY_VARIABLES, S3Server

# Ray workers start once for all tests and sign requests with these keys.
os.environ.update(KEY_VARIABLES)
ROWS = [{**GOOD, "input": f"report {number} of the day"} for number in range(60)]


class Bucket:
    """A bucket on a server of this machine."""

    def __init__(self, server: S3Server) -> None:
        self.endpoint = server.uri
        self._client = server.client
        self._client.create_bucket(Bucket="rows")

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket="rows", Key=key, Body=content)

    def uri(self, key: str, bucket: str = "rows") -> str:
        return f"s3://{bucket}/{key}?endpoint_override={self.endpoint}&region=us-east-1"


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    bucket = Bucket(server)
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
    third = lines.index(json.dumps(ROWS[20]).encode())
    bucket.put("day/a b [1].jsonl", lines[:third])
    bucket.put("day/more/b.json", json.dumps(ROWS[20:40]).encode())
    bucket.put("day/_SUCCESS", b"")
    bucket.put("day/README.md", b"-")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS[40:]), sink, row_group_size=7)
    bucket.put("day/more/c.parquet", sink.getvalue().to_pybytes())
    yield bucket
    server.stop()


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("day/a b [1].jsonl", ["a b [1].jsonl"]),
        ("day", ["a b [1].jsonl", "b.json", "c.parquet"]),
        ("day/more/", ["b.json", "c.parquet"]),
        ("", ["a b [1].jsonl", "b.json", "c.parquet"]),
        ("day/*.jsonl", ["a b [1].jsonl"]),
        ("d?y/**/[bc].*", ["b.json", "c.parquet"]),
    ],
)
def test_finds_files_folders_and_globs(bucket: Bucket, key: str, names: list[str]) -> None:
    files = find_files(bucket.uri(key))
    assert [file.name for file in files] == names
    assert len(file_digests(files)) == len(names)


def test_reads_all_rows_in_many_chunks(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHUNK_BYTES", 300)
    assert len(split_into_chunks(find_files(bucket.uri("day")))) > 8
    assert read_all_values(bucket.uri("day")) == ROWS


def test_endpoint_from_environment(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.endpoint)
    assert len(read_all_records("s3://rows/day/a b [1].jsonl?region=us-east-1")) == 20


@pytest.mark.parametrize(
    ("key", "name", "message"),
    [
        ("day/none.jsonl", "rows", "no file"),
        ("none/*.jsonl", "rows", "no file matches"),
        ("day/README.md", "rows", "unknown suffix; known are .jsonl"),
        ("x.jsonl", "elsewhere", "no file"),
    ],
)
def test_missing_source_is_named_before_ray_starts(
    make_config: Callable[..., Config], bucket: Bucket, key: str, name: str, message: str
) -> None:
    uri = bucket.uri(key, name)
    with pytest.raises(InputError, match=message) as error:
        prepare(make_config(data={"sources": [uri]}), fail_if_ray_starts)
    assert uri in str(error.value)


def test_unreachable_server_is_named(make_config: Callable[..., Config]) -> None:
    # A local port without a listener fails immediately; the client retries other failures for minutes.
    uri = "s3://rows/x.jsonl?endpoint_override=http://127.0.0.1:9&region=us-east-1"
    with pytest.raises(InputError, match=r"s3://rows/x.jsonl") as error:
        prepare(make_config(data={"sources": [uri]}), fail_if_ray_starts)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("ray_4_cpus")
def test_prepare_reads_from_object_store(
    make_config: Callable[..., Config], bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "CHUNK_BYTES", 2000)
    config = make_config(data={"sources": [bucket.uri("day")], "near_duplicates": None})
    dataset = prepare(config, ray_is_running).dataset
    outcomes = dataset.manifest["fates"]
    assert outcomes["trained"] + outcomes["test"] == dataset.manifest["num_read"] == len(ROWS)
    assert [source["name"] for source in dataset.manifest["sources"]] == ["a b [1].jsonl", "b.json", "c.parquet"]
    assert sum(batch.num_rows for batch in read_entries(dataset.path)) == len(ROWS)
    check_sources_unchanged(open_run(config, "evaluate"))
    bucket.put("day/more/b.json", json.dumps([GOOD]).encode())
    with pytest.raises(InputError, match=r"day/more/b.json.* changed since the run was prepared"):
        check_sources_unchanged(open_run(config, "evaluate"))
