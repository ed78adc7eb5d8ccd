"""Records of JSONL and JSON: any chunks give each line exactly once, and an invalid row does not affect the others."""

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from instruct_ray.data.sources import files as sources
from instruct_ray.data.sources.readers import row_number
from instruct_ray.data.sources.records import RowError
from instruct_ray.errors import InputError
from tests.data.sources.read_all import GOOD, find_files, read_all_records, read_all_values, replace_errors

G = json.dumps(GOOD).encode()
lines = st.lists(
    st.one_of(
        st.sampled_from([b"", b"   ", b"{}", b'{"a": 1}', b"{bad", b'{"a": "' + b"x" * 40 + b'"}', "é\u2028".encode()]),
        st.text(max_size=12).map(lambda text: json.dumps({"a": text}, ensure_ascii=False).encode(errors="replace")),
        st.binary(max_size=12).map(lambda content: content.replace(b"\n", b"")),
    ),
    max_size=12,
)
contents = st.builds(
    lambda start, parts, end, last: start + end.join(parts) + (end if last else b""),
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    lines,
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
)


def expected_records(content: bytes, limit: int) -> list[tuple[int, object, bytes]]:
    """A simple implementation: splits the whole content in memory. Returns (position, value, digest) of all lines."""
    records = []
    position = 0
    for part in content.split(b"\n"):
        line = content[position : position + len(part) + 1]
        text = (line.removeprefix(b"\xef\xbb\xbf") if position == 0 else line).strip()
        if len(line) > limit + line.endswith(b"\n"):
            records.append((position, "too_large", hashlib.sha256(line).digest()))
        elif text:
            try:
                value = json.loads(text.decode())
            except ValueError:
                value = "invalid"
            records.append((position, value, hashlib.sha256(line).digest()))
        position += len(line)
    return records


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(content=contents, chunk_bytes=st.integers(1, 60), limit=st.sampled_from([5, 24, 1000]))
@example(content=b"x" * 50 + b"\n{}\n", chunk_bytes=7, limit=5)
@example(content=b"{}\n{}", chunk_bytes=3, limit=1000)
def test_any_chunks_give_each_line_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, chunk_bytes: int, limit: int
) -> None:
    if not content:
        return
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    monkeypatch.setattr(sources, "CHUNK_BYTES", chunk_bytes)
    records = read_all_records(path, max_row_bytes=limit)
    values = [
        "invalid" if value in ("not_json", "not_utf8") else value
        for value in replace_errors(record.value for record in records)
    ]
    actual = [(record.position, value, record.digest) for record, value in zip(records, values, strict=True)]
    assert actual == expected_records(content, limit)
    [file] = find_files(path)
    for position, _, _ in actual:
        assert row_number(file, position) == content[:position].count(b"\n") + 1


def test_positions_in_compressed_file_are_those_of_its_text(tmp_path: Path) -> None:
    content = b"\n" + G + b"\n{bad\n" + G
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(content))
    assert read_all_values(path) == [GOOD, "not_json", GOOD]
    [file] = find_files(path)
    assert [row_number(file, record.position) for record in read_all_records(path)] == [2, 3, 4]


DEEP = b"[" * 200_000
INVALID_JSON = {
    b"{bad": "not_json",
    G[:-1] + b",}": "not_json",
    G + G: "not_json",
    G + b" x": "not_json",
    DEEP: "not_json",
    b'{"a": ' * 200_000: "not_json",
    b'{"instruction": "a", "instruction": "b"}': "duplicate_key",
    G[:-1] + b', "meta": [{"a": 1, "a": 2}]}': "duplicate_key",
    G[:-1] + b', "score": NaN}': "not_json",
    G[:-1] + b', "scores": [-Infinity]}': "not_json",
    b'{"id": ' + b"1" * 5000 + b"}": "not_json",
    G.replace(b'"x"', b'"\xe9t\xe9"'): "not_utf8",
    G.decode().encode("utf-16"): "not_utf8",
    b"'x'": "not_json",
}


@pytest.mark.parametrize(("line", "reason"), INVALID_JSON.items(), ids=lambda value: repr(value)[:30])
def test_invalid_line_does_not_affect_others(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(G + b"\n" + line + b"\n" + G + b"\n")
    assert read_all_values(path) == [GOOD, reason, GOOD]


@pytest.mark.parametrize(
    "text", ["a\u2028b\u0085c\u2029", "\u202eabc\u200b", "\ufeffa", "tab\\t \\u00e9 \\ud83d\\ude00"]
)
def test_unusual_characters_are_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"a": "{text}"}}\r\n' * 2)
    assert read_all_values(path) == [json.loads(f'{{"a": "{text}"}}')] * 2


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_byte_order_mark_is_ignored(tmp_path: Path, mark: bytes) -> None:
    for name, content in (
        ("a.jsonl", G),
        ("a.json", b"[" + G + b"]"),
        ("a.csv", b"instruction,input,output\nRate,x,High"),
    ):
        (tmp_path / name).write_bytes(mark + content)
        assert read_all_values(tmp_path / name) == [GOOD]


ARRAY_ELEMENTS = {
    b'{"a": 1, "a": 2}': "duplicate_key",
    b'{"a": NaN}': "not_json",
    b'{"a": ' + b"1" * 4400 + b"}": "not_json",
    b'{"a": "\xe9"}': "not_utf8",
    b'{"a": "' + b"x" * 5000 + b'"}': "too_large",
    b"[[[[1]]]]": [[[[1]]]],
    b"null": None,
}


@pytest.mark.parametrize(("element", "value"), ARRAY_ELEMENTS.items(), ids=lambda value: repr(value)[:30])
def test_invalid_element_does_not_affect_others(tmp_path: Path, element: bytes, value: object) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\n[ " + G + b"\n,\t" + element + b"," + G + b"]\r\n")
    records = read_all_records(path, max_row_bytes=5000)
    assert replace_errors(record.value for record in records) == [GOOD, value, GOOD]
    assert [record.position for record in records] == [0, 1, 2]
    assert records[1].digest == hashlib.sha256(element).digest()
    assert row_number(find_files(path)[0], 2) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "is not a JSON array of rows; if each line is an object, name it .jsonl"),
        (b"3", "is not a JSON array of rows$"),
        ("[{}]".encode("utf-16"), "is not a JSON array"),
        (b"[" + G + b", {bad]", "broken JSON array: row 2: Expecting property name"),
        (b"[" + G + b",]", "row 2: Expecting value"),
        (b"[" + G, "row 1: ',' or ']' must follow it"),
        (b"[" + G + G + b"]", "row 1: ',' or ']'"),
        (b"[", "row 1: Expecting value"),
        (b"[]x", "more text follows"),
        (b"[{}]]", "more text follows"),
        (b"[" + DEEP, "row 1: it is nested too deeply"),
    ],
)
def test_broken_array_is_an_input_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_all_records(path)
    assert str(path) in str(error.value)


def test_empty_array_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[ ]\n")
    assert read_all_records(tmp_path / "a.json") == []


# Prints the number of rows that are too large, the number of others, and the growth of peak memory in KiB.
MEASURE = """
import resource, sys
from tests.data.sources.read_all import read_all_values
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
values = read_all_values(sys.argv[1], max_row_bytes=2**20)
growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(values.count("too_large"), len(values) - values.count("too_large"), growth)
"""


@pytest.mark.parametrize(
    ("name", "start", "end"),
    [("a.jsonl", b'{"a": "', b'"}\n{"a": 1}\n'), ("a.jsonl.gz", b"", b"\n{}\n"), ("a.csv", b"a,b\n1,", b"\n1,2\n")],
)
def test_line_of_64_mib_is_skipped_without_loading_it(tmp_path: Path, name: str, start: bytes, end: bytes) -> None:
    path = tmp_path / name
    with gzip.open(path, "wb", 1) if name.endswith(".gz") else path.open("wb") as file:
        file.write(start)
        for _ in range(64):
            file.write(b"x" * 2**20)
        file.write(end)
    run = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True)
    num_too_large, num_others, growth_kib = map(int, run.stdout.split())
    assert (num_too_large, num_others) == (1, 1)
    # Twice the limit for the line, and a read buffer of 1 MiB for each chunk.
    assert growth_kib < 8 * 1024, f"memory grew by {growth_kib} KiB"


# Parses each row with 40 more stack frames than it was read with; prints the number of rows and the last output.
PARSE_NESTED = """
import sys, threading
from instruct_ray.data.sources.row_formats import parse_row
from tests.data.sources.read_all import RowError, make_data_config, read_all_records

def call_at_depth(depth, function):
    return call_at_depth(depth - 1, function) if depth else function()

def parse_all():
    source, results = make_data_config(sys.argv[1]).sources[0], []
    for record in read_all_records(sys.argv[1]):
        try:
            results.append(call_at_depth(40, lambda: parse_row(record.value, "", source)).output)
        except RowError as error:
            results.append(error.reason)
    print(len(results), results[-1])

thread = threading.Thread(target=parse_all)
thread.start()
thread.join()
"""


def test_deepest_rows_that_can_be_parsed_have_readable_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    nested = [b'{"instruction": ' + b"[" * depth + b"]" * depth + b"}\n" for depth in range(900, 1000)]
    path.write_bytes(b"".join(nested) + G)
    run = subprocess.run([sys.executable, "-c", PARSE_NESTED, path], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["101", "High"], run.stderr


def test_error_detail_is_short_and_encodable() -> None:
    error = RowError("x", "a\ud800b" + "c" * 10_000)
    assert error.detail.encode().startswith(b"a\\ud800b")
    assert len(error.detail) < 400
