"""JSON: a file that is one array of rows."""

import hashlib
import json
import re
from collections.abc import Iterator

from instruct_ray.data.sources.json_parser import find_value_end, parse_json
from instruct_ray.data.sources.records import ReadOptions, Record, row_too_large_error
from instruct_ray.data.sources.source_file import BYTE_ORDER_MARK, Chunk, SourceFile, open_source_file
from instruct_ray.errors import InputError

WHITESPACE = re.compile(r"[ \t\n\r]*")


def read_json_array(chunk: Chunk, options: ReadOptions) -> Iterator[Record]:
    """Yield the elements of the array, each parsed separately.

    Raises:
        InputError: the file is not an array, or its structure is broken, so that no later row can be found.
    """
    file, number = chunk.file, 0
    with open_source_file(file) as stream:
        # Bytes that are not UTF-8 become lone surrogates, so that only their own row can't be used.
        text = stream.read().removeprefix(BYTE_ORDER_MARK).decode(errors="surrogateescape")
    position = _find_first_element(file, text)
    while number or not text.startswith("]", position):
        end = _find_element_end(file, text, position, number)
        yield _parse_element(text[position:end], number, options.max_row_bytes)
        position = _skip_whitespace(text, end)
        if text.startswith("]", position):
            break
        if not text.startswith(",", position):
            raise _broken_array_error(file, number, "',' or ']' must follow it")
        position, number = _skip_whitespace(text, position + 1), number + 1
    if text[position + 1 :].strip():
        raise _broken_array_error(file, number, "more text follows the closing ']'")


def _find_first_element(file: SourceFile, text: str) -> int:
    position = _skip_whitespace(text, 0)
    if not text.startswith("[", position):
        hint = "; if each line is an object, name it .jsonl" if text.startswith("{", position) else ""
        raise InputError(f"data.sources: {file.uri} is not a JSON array of rows{hint}")
    return _skip_whitespace(text, position + 1)


def _find_element_end(file: SourceFile, text: str, position: int, number: int) -> int:
    try:
        return find_value_end(text, position)
    except json.JSONDecodeError as error:
        raise _broken_array_error(file, number, error.msg) from None
    except RecursionError:
        raise _broken_array_error(file, number, "it is nested too deeply") from None


def _parse_element(text: str, number: int, max_row_bytes: int) -> Record:
    content = text.encode(errors="surrogateescape")
    value = row_too_large_error(max_row_bytes) if len(content) > max_row_bytes else parse_json(content)
    return Record(number, value, hashlib.sha256(content).digest())


def _skip_whitespace(text: str, position: int) -> int:
    match = WHITESPACE.match(text, position)
    return match.end() if match else position


def _broken_array_error(file: SourceFile, number: int, reason: str) -> InputError:
    return InputError(f"data.sources: {file.uri} is a broken JSON array: row {number + 1}: {reason}")
