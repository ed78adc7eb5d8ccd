"""Label selectors: which nodes of a cluster may be used, by the labels that the nodes were started with."""

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic.functional_validators import AfterValidator

# As in Kubernetes: an optional DNS prefix before a slash, and at most 63 letters, digits, `-`, `_` and `.`.
_NAME = r"[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_KEY = re.compile(rf"([a-zA-Z0-9][a-zA-Z0-9.-]{{0,252}}/)?{_NAME}")
# Ray's conditions: `spot`, `!spot`, `in(a, b)` and `!in(a, b)`.
_CONDITION = re.compile(rf"(?P<negated>!?)(?:in\((?P<several>{_NAME}(?:, ?{_NAME})*)\)|(?P<one>{_NAME}))")


def _check_selector(selector: dict[str, str]) -> dict[str, str]:
    for key, condition in selector.items():
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is not the key of a label")
        if not _CONDITION.fullmatch(condition):
            raise ValueError(f"{key}: {condition!r} is not a condition; write VALUE, !VALUE, in(A, B) or !in(A, B)")
    return selector


LabelSelector = Annotated[dict[str, str], AfterValidator(_check_selector)]


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether a node with these labels may be used. As in Ray, a node without the label has no value that is wanted."""
    return all(_holds(labels.get(key), condition) for key, condition in selector.items())


def _holds(value: str | None, condition: str) -> bool:
    match = _CONDITION.fullmatch(condition)
    assert match is not None, "the config checks every condition"
    wanted = re.split(r", ?", match["several"] or match["one"])
    return (value in wanted) != bool(match["negated"])


def describe_selector(selector: Mapping[str, str]) -> str:
    """A selector for messages: `market=spot, zone=in(a, b)`."""
    return ", ".join(f"{key}={condition}" for key, condition in selector.items())
