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
        (b"x,y,,", [{"instruction": "x", "output": "y"}]),
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


ROWS = [{"instruction": "a; b, c", "output": "1\t2|3"}, B]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", "~", "§"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_delimiter_is_found_named_or_given(tmp_path: Path, delimiter: str, start: str, suffix: str) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerows([("instruction", "output"), *(row.values() for row in ROWS)])
    path = tmp_path / f"a{suffix}"
    path.write_text(start + text.getvalue(), newline="")
    assert read_all_values(path, delimiter=delimiter) == ROWS
    if delimiter in (",", ";", "\t", "|"):
        assert read_all_values(path) == ROWS
    path.write_text(f"{start}sep={delimiter}\r\n{text.getvalue()}", newline="")
    assert read_all_values(path) == ROWS
    [file] = find_files(path)
    assert [row_number(file, record.position) for record in read_all_records(path)] == [3, 4]


@pytest.mark.parametrize(
    ("header", "columns", "delimiter"),
    [
        ("instruction;output,raw;system", {}, ";"),
        ("question|answer", {"instruction": "question", "output": "answer"}, "|"),
        ('"instruction;output";input', {"instruction": "instruction;output"}, ";"),
        ("a;b;c", {}, ";"),
        ("a;b;c,d", {}, ","),
        ("instruction", {}, ","),
    ],
)
def test_delimiter_separates_the_names_that_are_read(
    tmp_path: Path, header: str, columns: dict[str, str], delimiter: str
) -> None:
    path = tmp_path / "a.csv"
    names = next(csv.reader([header], delimiter=delimiter))
    path.write_text(f"{header}\n{delimiter.join('x' for _ in names)}\n")
    assert read_all_values(path, columns=columns) == [dict.fromkeys(names, "x")]


@pytest.mark.parametrize("delimiter", ['"', "\n", "", ";;"])
def test_delimiter_is_one_character(tmp_path: Path, delimiter: str) -> None:
    with pytest.raises(ValueError, match="delimiter"):
        read_all_values(tmp_path / "a.csv", delimiter=delimiter)


def test_rows_may_be_shorter_than_the_header_where_nothing_required_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("instruction,output,input,notes\na,1\nb,2,x\nc,3,y,z\nd\ne,5,,,,\n")
    rest = {"input": "", "notes": ""}
    assert read_all_values(path) == [
        A | rest,
        B | rest | {"input": "x"},
        {"instruction": "c", "output": "3", "input": "y", "notes": "z"},
        "not_csv",
        {"instruction": "e", "output": "5"} | rest,
    ]
    error = read_all_records(path)[3].value
    assert str(error) == "has 1 columns, but the header has 4: no output, input, notes"
    # With other names, other columns are required.
    columns = {"output": "notes"}
    assert read_all_values(path, columns=columns)[0] == "not_csv"
