"""JSON outputs: whether they are expected, which answers are valid, and the accuracy by field. Pure."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

JsonObject = dict[str, Any]
_MISSING = object()


@dataclass(frozen=True)
class FieldAccuracy:
    """How often one field is right."""

    path: str
    """Keys joined by dots; elements of lists by their index: `items.0.name`."""
    num_rows: int
    """Rows whose expected output has the field."""
    num_right: int


@dataclass(frozen=True)
class JsonScores:
    """The scores of answers that should be JSON objects."""

    valid: tuple[bool, ...]
    """Whether each answer is a JSON object, shape [rows]."""
    field_accuracy: tuple[float, ...]
    """Share of the expected fields that each answer has right, shape [rows]; 0 for an invalid answer."""
    extra_fields: int
    """Fields of all answers that are not expected."""
    fields: tuple[FieldAccuracy, ...]
    """By path, in alphabetical order."""


def expects_json(outputs: Sequence[str]) -> bool:
    """Whether all expected outputs are JSON objects."""
    return bool(outputs) and all(parse_object(output) is not None for output in outputs)


def parse_object(text: str) -> JsonObject | None:
    """Parse a JSON object; None if the text is none. `NaN` and keys that occur twice are no valid JSON here."""
    try:
        value = json.loads(text, parse_constant=_refuse, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def score_json(answers: Sequence[str], expected: Sequence[str]) -> JsonScores:
    """Score answers against expected JSON objects, field by field.

    Raises:
        ValueError: an expected output is no JSON object, or the arguments have different lengths.
    """
    valid, accuracy, num_extra = [], [], 0
    num_rows: dict[str, int] = {}
    num_right: dict[str, int] = {}
    for answer, expected_text in zip(answers, expected, strict=True):
        target, value = parse_object(expected_text), parse_object(answer)
        if target is None:
            raise ValueError(f"no JSON object is expected: {expected_text!r}")
        wanted = dict(_iter_fields(target))
        found = dict(_iter_fields(value)) if value is not None else {}
        right = {path for path, field in wanted.items() if _equal(found.get(path, _MISSING), field)}
        for path in wanted:
            num_rows[path] = num_rows.get(path, 0) + 1
            num_right[path] = num_right.get(path, 0) + (path in right)
        valid.append(value is not None)
        accuracy.append(len(right) / len(wanted) if wanted else float(value == target))
        num_extra += len(found.keys() - wanted.keys())
    fields = tuple(FieldAccuracy(path, num_rows[path], num_right[path]) for path in sorted(num_rows))
    return JsonScores(tuple(valid), tuple(accuracy), num_extra, fields)


def _iter_fields(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The values that are not containers, and empty containers, by path."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not children:
        if path:
            yield path, value
        return
    for key, child in children:
        # A dot within a key would read as two keys.
        name = str(key).replace("\\", "\\\\").replace(".", "\\.")
        yield from _iter_fields(child, f"{path}.{name}" if path else name)


def _equal(value: Any, expected: Any) -> bool:
    """Whether two JSON values are equal; `true` is not 1, while 1 is 1.0."""
    return isinstance(value, bool) == isinstance(expected, bool) and bool(value == expected)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _unique(pairs: list[tuple[str, Any]]) -> JsonObject:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key occurs twice")
    return values
