"""CSV as spreadsheets write it; an invalid row does not affect the others."""

import csv
import hashlib
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instruct_ray.data.sources.readers import row_number
from instruct_ray.errors import InputError
from tests.data.sources.read_all import find_files, read_all_records, read_all_values, replace_errors

HEAD = b"instruction,output\n"
A, B = {"instruction": "a", "output": "1"}, {"instruction": "b", "output": "2"}
cell = st.text(st.sampled_from('ab,"\n\r é\u2028'), max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.lists(st.tuples(cell, cell), max_size=6),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_reads_back_what_csv_writer_wrote(tmp_path: Path, rows: list[tuple[str, str]], end: str, quoting: int) -> None:
    if quoting == csv.QUOTE_MINIMAL and end == "\n":
        # Python's writer does not quote a carriage return that is not part of its line end.
        rows = [(question.replace("\r", ""), answer.replace("\r", "")) for question, answer in rows]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=end, quoting=quoting)
    writer.writerows([("instruction", "output"), *rows])
    path = tmp_path / "a.csv"
    path.write_bytes(text.getvalue().encode())
    assert read_all_values(path) == [{"instruction": question, "output": answer} for question, answer in rows]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (b"x", ["not_csv"]),
        (b"x,y,z", ["not_csv"]),
        (b'"x" y,z', ["not_csv"]),
        (b'"said "hi" to me",x', ["not_csv"]),
        (b'x,"never closed', ["not_csv"]),
        (b"x\ry,z", ["not_csv"]),
        (b"x,\xe9", ["not_utf8"]),
        (b"x," + b"y" * 200, ["too_large"]),
        (b'"x,' + b"y" * 200 + b'"', ["too_large"]),
        (b"", []),
        (b'5" disk,x', [{"instruction": '5" disk', "output": "x"}]),
    ],
)
@pytest.mark.parametrize("last", [b'"b",2', b"b,2\n"])
def test_invalid_row_does_not_affect_others(tmp_path: Path, row: bytes, last: bytes, expected: list[object]) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(HEAD + b"a,1\n" + row + b"\n" + last)
    assert read_all_values(path, max_row_bytes=150) == [A, *expected, B]


def test_row_numbers_are_lines_and_digests_cover_all_bytes(tmp_path: Path) -> None:
    rows = [b'"two\r\nlines",1\r\n', b"\r\n", b"broken\r\n", b"x," + b"y" * 200 + b"\r\n", b"b,2"]
    path = tmp_path / "a.csv"
    path.write_bytes(HEAD + b"".join(rows))
    records = read_all_records(path, max_row_bytes=150)
    [file] = find_files(path)
    assert [row_number(file, record.position) for record in records] == [2, 5, 6, 7]
    assert [record.digest for record in records] == [hashlib.sha256(row).digest() for row in rows if row != b"\r\n"]
    assert replace_errors(record.value for record in records)[1:] == ["not_csv", "too_large", B]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b,a\n1,2,3\n", "has two columns named a"),
        ("instruction,output\na,b\n".encode("utf-16"), "is not UTF-8"),
        (b"instruction\toutput\ra\tb\r", "does not start with a line of column names"),
        (b"x" * 300, "does not start with a line of column names"),
        (HEAD + b'a,"open\n' + b"line\n" * 40, "the row on line 2 opens a quote that is not closed"),
    ],
)
def test_unreadable_csv_is_an_input_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_all_records(path, max_row_bytes=150)
    assert str(path) in str(error.value)
