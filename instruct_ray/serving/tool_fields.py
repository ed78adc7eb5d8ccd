"""The fields of chat requests about tools: definitions, choice and calls."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from instruct_ray.data.sources.tool_definitions import FUNCTION_NAME, MAX_TOOLS, check_arguments, check_texts
from instruct_ray.serving.request_fields import RequestObject

MAX_ARGUMENT_CHARACTERS = 1_000_000

FunctionName = Annotated[str, Field(pattern=f"^{FUNCTION_NAME.pattern}$")]


class FunctionDefinition(RequestObject):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    """Whether the arguments of its calls must follow the schema."""

    @field_validator("parameters")
    @classmethod
    def _check_parameters(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        check_texts(value, "parameters")
        return value

    def to_definition(self) -> dict[str, Any]:
        """The definition as the chat template gets it."""
        values = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": {key: value for key, value in values.items() if value is not None}}


class Tool(RequestObject):
    """A tool; only functions are supported."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionReference(RequestObject):
    """The name of a function."""

    name: FunctionName


class NamedToolChoice(RequestObject):
    """A choice that makes the model call one function."""

    type: Literal["function"]
    function: FunctionReference


class CalledFunction(RequestObject):
    """A function with the arguments of a call."""

    name: FunctionName
    arguments: Annotated[str, Field(max_length=MAX_ARGUMENT_CHARACTERS)]

    @field_validator("arguments")
    @classmethod
    def _check_arguments(cls, value: str) -> str:
        try:
            check_arguments(_load(value), "arguments")
        except ValueError:
            # Without what the client sent.
            raise ValueError("it is not the text of a JSON object") from None
        return value


class MessageToolCall(RequestObject):
    """A call in an answer that the client sends back."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction

    def to_call(self) -> dict[str, Any]:
        """The call as the renderer takes it."""
        function = {"name": self.function.name, "arguments": _load(self.function.arguments)}
        return {"id": self.id, "type": "function", "function": function}


Tools = Annotated[list[Tool], Field(min_length=1, max_length=MAX_TOOLS)]
ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice


def check_choice(tools: list[Tool] | None, choice: ToolChoice | None, parallel: bool | None) -> None:
    """Check that tools, `tool_choice` and `parallel_tool_calls` fit together.

    Raises:
        ValueError: they don't.
    """
    names = [tool.function.name for tool in tools or []]
    if len(set(names)) < len(names):
        raise ValueError("tools: two functions have the same name")
    if not names and choice not in (None, "none"):
        raise ValueError("tool_choice is only allowed with tools")
    if not names and parallel is not None:
        raise ValueError("parallel_tool_calls is only allowed with tools")
    if isinstance(choice, NamedToolChoice) and choice.function.name not in names:
        raise ValueError("tool_choice names a function that is not in tools")


def check_results(messages: Sequence[Mapping[str, Any]]) -> None:
    """Check that calls and results of tools belong to each other.

    Raises:
        ValueError: a result has no call before it, or a call no result after it.
    """
    open_ids: set[str] = set()
    for message in messages:
        if message["role"] == "tool":
            if message["tool_call_id"] not in open_ids:
                raise ValueError("a result of a tool must follow the call with its id")
            open_ids.discard(message["tool_call_id"])
        elif open_ids:
            break
        else:
            open_ids = {call["id"] for call in message.get("tool_calls", [])}
    if open_ids:
        raise ValueError("calls must be followed by a result for each of them")


def _load(arguments: str) -> Any:
    # A call without arguments is an empty text in some clients.
    try:
        return json.loads(arguments) if arguments.strip() else {}
    except RecursionError:
        raise ValueError("nested too deeply") from None
