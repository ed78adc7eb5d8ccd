"""Records: each line exactly once from any chunks, and a bad one costs no other."""

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
from tests.data.sources.read_all import GOOD, files_of, reasons_for, records_of, values_of

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
    """What is to come out, by another way: all in memory, split at once."""
    found = []
    position = 0
    for line in content.split(b"\n"):
        whole = content[position : position + len(line) + 1]
        text = (whole.removeprefix(b"\xef\xbb\xbf") if position == 0 else whole).strip()
        if len(whole) > limit + whole.endswith(b"\n"):
            found.append((position, "too_large", hashlib.sha256(whole).digest()))
        elif text:
            try:
                value = json.loads(text.decode())
            except ValueError:
                value = "bad"
            found.append((position, value, hashlib.sha256(whole).digest()))
        position += len(whole)
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(content=contents, chunk_bytes=st.integers(1, 60), limit=st.sampled_from([5, 24, 1000]))
@example(content=b"x" * 50 + b"\n{}\n", chunk_bytes=7, limit=5)
@example(content=b"{}\n{}", chunk_bytes=3, limit=1000)
def test_any_chunks_hold_each_line_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, chunk_bytes: int, limit: int
) -> None:
    if not content:
        return
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    monkeypatch.setattr(sources, "CHUNK_BYTES", chunk_bytes)
    records = records_of(path, max_row_bytes=limit)
    values = [
        "bad" if reason in ("not_json", "not_utf8") else reason for reason in reasons_for(r.value for r in records)
    ]
    found = [(record.position, value, record.digest) for record, value in zip(records, values, strict=True)]
    assert found == expected_records(content, limit)
    [file] = files_of(path)
    for position, _, _ in found:
        assert row_number(file, position) == content[:position].count(b"\n") + 1


def test_positions_in_compressed_lines_are_those_of_the_text(tmp_path: Path) -> None:
    content = b"\n" + G + b"\n{bad\n" + G
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(content))
    assert values_of(path) == [GOOD, "not_json", GOOD]
    [file] = files_of(path)
    assert [row_number(file, record.position) for record in records_of(path)] == [2, 3, 4]


DEEP = b"[" * 200_000
BAD_JSON = {
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


@pytest.mark.parametrize(("bad", "reason"), BAD_JSON.items(), ids=lambda value: repr(value)[:30])
def test_a_bad_line_costs_no_other(tmp_path: Path, bad: bytes, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(G + b"\n" + bad + b"\n" + G + b"\n")
    assert values_of(path) == [GOOD, reason, GOOD]


@pytest.mark.parametrize(
    "text", ["a\u2028b\u0085c\u2029", "\u202eabc\u200b", "\ufeffa", "tab\\t \\u00e9 \\ud83d\\ude00"]
)
def test_odd_characters_are_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"a": "{text}"}}\r\n' * 2)
    assert values_of(path) == [json.loads(f'{{"a": "{text}"}}')] * 2


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, mark: bytes) -> None:
    for name, content in (
        ("a.jsonl", G),
        ("a.json", b"[" + G + b"]"),
        ("a.csv", b"instruction,input,output\nRate,x,High"),
    ):
        (tmp_path / name).write_bytes(mark + content)
        assert values_of(tmp_path / name) == [GOOD]


ARRAY_ELEMENTS = {
    b'{"a": 1, "a": 2}': "duplicate_key",
    b'{"a": NaN}': "not_json",
    b'{"a": ' + b"1" * 4400 + b"}": "not_json",
    b'{"a": "\xe9"}': "not_utf8",
    b'{"a": "' + b"x" * 5000 + b'"}': "too_large",
    b"[[[[1]]]]": [[[[1]]]],
    b"null": None,
}


@pytest.mark.parametrize(("bad", "value"), ARRAY_ELEMENTS.items(), ids=lambda value: repr(value)[:30])
def test_a_bad_element_costs_no_other(tmp_path: Path, bad: bytes, value: object) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\n[ " + G + b"\n,\t" + bad + b"," + G + b"]\r\n")
    records = records_of(path, max_row_bytes=5000)
    assert reasons_for(record.value for record in records) == [GOOD, value, GOOD]
    assert [record.position for record in records] == [0, 1, 2]
    assert records[1].digest == hashlib.sha256(bad).digest()
    assert row_number(files_of(path)[0], 2) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "is not a JSON array of rows; if each line is an object, name it .jsonl"),
        (b"3", "is not a JSON array of rows$"),
        ("[{}]".encode("utf-16"), "is not a JSON array"),
        (b"[" + G + b", {bad]", "broken JSON array: row 2: Expecting property name"),
        (b"[" + G + b",]", "row 2: Expecting value"),
        (b"[" + G, "row 1: neither ',' nor ']' follows it"),
        (b"[" + G + G + b"]", "row 1: neither"),
        (b"[", "row 1: Expecting value"),
        (b"[]x", "more stands behind"),
        (b"[{}]]", "more stands behind"),
        (b"[" + DEEP, "row 1: it is nested too deeply"),
    ],
)
def test_a_broken_array_is_one_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        records_of(path)
    assert str(path) in str(error.value)


def test_an_empty_array_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[ ]\n")
    assert records_of(tmp_path / "a.json") == []


MEASURE = """
import resource, sys
from tests.data.sources.read_all import records_of
from tests.data.sources.read_all import reasons_for
limit = 2**20
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = reasons_for(r.value for r in records_of(sys.argv[1], max_row_bytes=limit))
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(found.count("too_large"), len(found) - found.count("too_large"), grown)
"""


@pytest.mark.parametrize(
    ("name", "start", "end"),
    [("a.jsonl", b'{"a": "', b'"}\n{"a": 1}\n'), ("a.jsonl.gz", b"", b"\n{}\n"), ("a.csv", b"a,b\n1,", b"\n1,2\n")],
)
def test_a_line_of_64_mib_is_passed_over_unread(tmp_path: Path, name: str, start: bytes, end: bytes) -> None:
    path = tmp_path / name
    with gzip.open(path, "wb", 1) if name.endswith(".gz") else path.open("wb") as file:
        file.write(start)
        for _ in range(64):
            file.write(b"x" * 2**20)
        file.write(end)
    run = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True)
    num_large, num_good, grown_kib = map(int, run.stdout.split())
    assert (num_large, num_good) == (1, 1)
    # Twice the limit for the line, and a read buffer of 1 MiB for each of the chunks' files.
    assert grown_kib < 8 * 1024, f"memory grew by {grown_kib} KiB"


def test_what_the_decoder_just_bears_is_shown_without_recursion(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    bad = [b'{"instruction": ' + b"[" * depth + b"]" * depth + b"}\n" for depth in range(900, 1000)]
    path.write_bytes(b"".join(bad) + G)
    code = (
        "import threading, sys; from tests.data.sources.read_all import *\n"
        "from instruct_ray.data.reading.triples import parse\n"
        "def below(depth, work): return below(depth - 1, work) if depth else work()\n"
        "def work():\n"
        "    data, found = config_of(sys.argv[1]), []\n"
        "    for record in records_of(sys.argv[1]):\n"
        "        try: found.append(below(40, lambda: parse(record.value, '', data.sources[0])).output)\n"
        "        except RowError as error: found.append(error.reason)\n"
        "    print(len(found), found[-1])\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()"
    )
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["101", "High"], run.stderr


def test_what_a_row_holds_never_breaks_its_error() -> None:
    error = RowError("x", "a\ud800b" + "c" * 10_000)
    assert error.detail.encode().startswith(b"a\\ud800b")
    assert len(error.detail) < 400
