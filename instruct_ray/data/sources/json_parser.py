"""Strict JSON parsing of one value, with errors that belong to its row."""

import json
from typing import Any

from instruct_ray.data.sources.records import RowError, not_utf8_error


def parse_json(content: bytes) -> Any:
    """Parse one JSON value; returns a `RowError` if it is not one."""
    try:
        text = content.decode()
        value, end = _STRICT_DECODER.raw_decode(text)
    except RowError as error:
        return error
    except json.JSONDecodeError as error:
        return RowError("not_json", f"is not JSON ({error.msg} at character {error.pos + 1})")
    except UnicodeDecodeError as error:
        return not_utf8_error(error)
    except RecursionError:
        return RowError("not_json", "is nested too deeply")
    except ValueError as error:
        return RowError("not_json", f"is not JSON ({error})")
    if end < len(text):
        return RowError("not_json", f"is not JSON (more text after the value, at character {end + 1})")
    return value


def find_value_end(text: str, position: int) -> int:
    """Return the index after the JSON value at `position`, even if `parse_json` would reject the value.

    Raises:
        JSONDecodeError: there is no JSON value at `position`.
        RecursionError: it is nested too deeply.
    """
    _, end = _LENIENT_DECODER.raw_decode(text, position)
    return end


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise RowError("duplicate_key", "has a duplicate key")
    return values


def _reject_constant(name: str) -> Any:
    raise RowError("not_json", f"is not JSON ({name} is not a JSON value)")


_STRICT_DECODER = json.JSONDecoder(object_pairs_hook=_build_object, parse_constant=_reject_constant)
_LENIENT_DECODER = json.JSONDecoder(parse_int=str, parse_float=str)
