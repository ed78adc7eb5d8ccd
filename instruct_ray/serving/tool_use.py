"""replica: what a request with tools asks of an answer: which calls it may have, and how they are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.rendering.tool_calls import ParsedAnswer, parse_answer
from instruct_ray.data.rendering.tool_format import ToolFormat
from instruct_ray.errors import one_line
from instruct_ray.inference.tool_grammar import CallRules, tool_grammar
from instruct_ray.serving.chat_request import ChatRequest
from instruct_ray.serving.rejection import RejectedRequestError
from instruct_ray.serving.tool_fields import FunctionDefinition, NamedToolChoice

MAX_ERROR_CHARACTERS = 300
UNSUPPORTED = "unsupported_value"


@dataclass(frozen=True)
class ToolUse:
    """How the calls in the answers to a request are read."""

    renderer: Renderer
    tool_format: ToolFormat
    tools: Sequence[dict[str, Any]]
    one_call: bool
    """Whether an answer has at most one call."""

    @property
    def mark_ids(self) -> frozenset[int]:
        """Special tokens that belong to calls."""
        return self.renderer.tool_chats.mark_ids

    def parse(self, text: str) -> ParsedAnswer:
        """Find the calls in a text."""
        return parse_answer(self.renderer.tokenizer, self.tool_format, text, self.tools)


def find_tool_use(renderer: Renderer, request: ChatRequest) -> ToolUse | None:
    """Find out what a request asks for; None if its answers have no calls.

    Raises:
        RejectedRequestError: the chat template does not support tools, or its calls can't be read.
    """
    if not request.callable_tools:
        return None
    tool_format = renderer.tool_chats.format
    if tool_format is None or tool_format.response_template is None:
        problem = "writes no tools" if tool_format is None else "writes calls in a form that can't be read here"
        raise _reject(f"tools: the chat template of this model {problem}", "tools", "unsupported_parameter")
    tools = [tool.function.to_definition() for tool in request.callable_tools]
    return ToolUse(renderer, tool_format, tools, one_call=request.has_one_call)


def find_call_grammar(use: ToolUse, request: ChatRequest) -> str | None:
    """Make the grammar that holds what `tool_choice`, `strict` and `response_format` ask for; None if nothing is.

    Raises:
        RejectedRequestError: it can't be held for this model, or a schema can't be decoded by.
    """
    functions = [tool.function for tool in request.callable_tools]
    schema, must_call = request.response_format.schema_of_answer, request.must_call
    if isinstance(request.tool_choice, NamedToolChoice):
        functions = [one for one in functions if one.name == request.tool_choice.function.name]
    is_strict = any(function.strict for function in functions)
    if not (must_call or is_strict or schema is not None):
        return None
    param = "tool_choice" if must_call else "tools" if is_strict else request.format_field
    if use.tool_format.syntax is None:
        raise _reject(f"{param}: the form of this model's calls can't be decoded by", param, UNSUPPORTED)
    if schema is not None and not must_call and not use.tool_format.prefix:
        message = f"{request.format_field}: this model's calls can't be told from JSON; send no tools"
        raise _reject(message, request.format_field, UNSUPPORTED)
    definitions = [_to_rule(function, is_held=must_call or bool(function.strict)) for function in functions]
    rules = CallRules(definitions, must_call, request.has_one_call, schema)
    special = {use.renderer.tokenizer.convert_ids_to_tokens(number): number for number in _special_marks(use)}
    try:
        return tool_grammar(use.renderer.contract, use.tool_format.syntax, special, rules)
    except ValueError as error:
        message = f"{param}: {one_line(error, MAX_ERROR_CHARACTERS)}"
        raise _reject(message, param, "invalid_function_parameters") from None


def _to_rule(function: FunctionDefinition, *, is_held: bool) -> dict[str, Any]:
    return {"name": function.name, "parameters": function.parameters if is_held else None}


def _special_marks(use: ToolUse) -> list[int]:
    """The tokens that only the chat template writes, in its calls."""
    encoder = use.renderer.encoder
    return encoder.special_ids(encoder.encode_with_special([use.tool_format.call])[0])


def _reject(message: str, param: str, code: str) -> RejectedRequestError:
    return RejectedRequestError(400, message, param, code)
