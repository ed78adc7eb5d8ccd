"""Function definitions of rows and requests, in OpenAI's form, and the names and arguments of calls. Pure."""

import re
from typing import Any

from instruct_ray.data.sources.json_parser import parse_json
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.row_fields import check_text, short_repr

MAX_TOOLS = 128
FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
FUNCTION_KEYS = ("name", "description", "parameters")
# It concerns decoding, not the text of the prompt.
DROPPED_KEYS = ("strict",)
# A value that is nested more deeply is no argument of a function.
MAX_DEPTH = 64


def parse_tools(value: Any, name: str) -> list[dict[str, Any]]:
    """Parse function definitions: a list of them, or the same as JSON text. None are no tools.

    Nulls in a list are dropped: tables fill up the keys that a definition does not have with them.

    Raises:
        RowError: they are not valid; says where.
    """
    if isinstance(value, str) and value.strip():
        value = parse_json(value.encode(errors="surrogatepass"))
        if isinstance(value, RowError):
            raise RowError("tools", f"has {name} that are no JSON: {value}")
    else:
        value = drop_nulls(value)
    if not value:
        return []
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise RowError("tools", f"has {name} that are no list of at most {MAX_TOOLS} function definitions")
    tools = [_parse_tool(tool, name) for tool in value]
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) < len(names):
        raise RowError("tools", f"has two {name} of the same name")
    return tools


def check_function_name(value: Any, place: str) -> str:
    """Return the name of a function.

    Raises:
        RowError: it is not one that OpenAI's API allows.
    """
    if not isinstance(value, str) or not FUNCTION_NAME.fullmatch(value):
        raise RowError(
            "tools", f"has {place} with name {short_repr(value)}: use up to 64 letters, digits, '_', '-' and '.'"
        )
    return value


def check_arguments(value: Any, place: str) -> None:
    """Check the arguments of a call.

    Raises:
        RowError: they are no object, or have text that can't be used.
    """
    if not isinstance(value, dict):
        raise RowError("tool_call", f"has {place} that are {short_repr(value)}, not an object")
    check_texts(value, place)


def check_texts(value: Any, place: str, depth: int = 0) -> None:
    """Check every text in a JSON value.

    Raises:
        RowError: one can't be used, or the value is nested too deeply.
    """
    if depth > MAX_DEPTH:
        raise RowError("tools", f"has {place} nested more than {MAX_DEPTH} deep")
    if isinstance(value, str):
        check_text(value, place)
    elif isinstance(value, dict):
        for key, item in value.items():
            check_text(key, place)
            check_texts(item, place, depth + 1)
    elif isinstance(value, list):
        for item in value:
            check_texts(item, place, depth + 1)
    elif value is not None and not isinstance(value, bool | int | float):
        raise RowError("wrong_type", f"has {place} with {short_repr(value)}, which is no JSON value")


def drop_nulls(value: Any) -> Any:
    """Return a value from a table without the keys that are null."""
    if isinstance(value, dict):
        return {key: drop_nulls(item) for key, item in value.items() if item is not None}
    return [drop_nulls(item) for item in value] if isinstance(value, list) else value


def _parse_tool(tool: Any, name: str) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type") != "function":
        raise RowError("tools", f"has {name} with an entry that is not {{type: function, function: {{name, …}}}}")
    check_function_name(function.get("name"), name)
    place = f"the function {function['name']} in {name}"
    if unknown := sorted(map(str, function.keys() - {*FUNCTION_KEYS, *DROPPED_KEYS})):
        raise RowError("tools", f"has {place} with the unknown key {short_repr(unknown[0])}")
    if not isinstance(function.get("parameters", {}), dict) or not isinstance(function.get("description", ""), str):
        raise RowError("tools", f"has {place} whose description is no text or whose parameters are no object")
    check_texts(function, place)
    return {"type": "function", "function": {key: function[key] for key in FUNCTION_KEYS if key in function}}
