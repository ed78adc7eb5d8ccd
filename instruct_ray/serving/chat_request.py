"""The body of a chat request of OpenAI's API, as far as it is supported."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from instruct_ray.data.rendering.contract import Message
from instruct_ray.data.sources.tool_definitions import MAX_TOOLS
from instruct_ray.serving.request_fields import GenerationFields, JsonSchema, RequestObject, SchemaName
from instruct_ray.serving.tool_fields import (
    MessageToolCall,
    NamedToolChoice,
    Tool,
    ToolChoice,
    Tools,
    check_choice,
    check_results,
)

MAX_MESSAGES = 256
MAX_CHARACTERS = 1_000_000

# Fields of OpenAI's API that are not supported, each with the values besides null that ask for nothing.
UNUSED_REQUEST_FIELDS: dict[str, tuple[object, ...]] = {
    "audio": (),
    "function_call": ("none",),
    "functions": (),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": (),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "verbosity": (),
    "web_search_options": (),
}
# Of a message: what clients send back when they append an answer of this or another endpoint to the chat.
UNUSED_MESSAGE_FIELDS: dict[str, tuple[object, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "reasoning": (),
    "reasoning_content": (),
    "refusal": (),
}


class TextPart(RequestObject):
    """A text part of a message; some clients send a list of parts instead of a string."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=MAX_CHARACTERS)]


class ChatMessage(RequestObject):
    """One message of a chat."""

    unused_fields = UNUSED_MESSAGE_FIELDS

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, Field(max_length=MAX_CHARACTERS)] | list[TextPart] | None = None
    """Only calls may have none."""
    name: str | None = None
    tool_calls: list[MessageToolCall] = Field(default_factory=list, max_length=MAX_TOOLS)
    """Of the assistant."""
    tool_call_id: str | None = None
    """Of the result of a tool: the call that it belongs to."""

    @model_validator(mode="after")
    def _check_role(self) -> "ChatMessage":
        if self.content is None and not self.tool_calls:
            raise ValueError("content is required")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls belong to messages of the assistant")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("tool_call_id belongs to messages of a tool, and is required there")
        return self

    def to_message(self) -> Message:
        """Convert to the form that the renderer takes."""
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        message = Message(role="system" if self.role == "developer" else self.role, content=text)
        if self.tool_calls:
            message["tool_calls"] = [call.to_call() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
            message |= {} if self.name is None else {"name": self.name}
        return message


class JsonSchemaFormat(RequestObject):
    """A JSON schema, with its name for the model. It always holds: `strict` changes nothing."""

    model_config = ConfigDict(populate_by_name=True)

    name: SchemaName
    json_schema: JsonSchema = Field(default_factory=dict, alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(RequestObject):
    """What the answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema, and is required there")
        return self

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        """The JSON schema of the answer, empty for any object; None for text."""
        if self.type == "text":
            return None
        return {} if self.json_schema is None else self.json_schema.json_schema


class ChatRequest(GenerationFields):
    """Body of POST /v1/chat/completions."""

    unused_fields = UNUSED_REQUEST_FIELDS
    prompt_field = "messages"
    format_field: ClassVar[str] = "response_format"
    """What the client calls the field of the answer's format, for errors."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat = ResponseFormat(type="text")
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _check_limits(self) -> "ChatRequest":
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; send one of them")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        check_choice(self.tools, self.tool_choice, self.parallel_tool_calls)
        messages = [message.to_message() for message in self.messages]
        if sum(len(message["content"]) for message in messages) > MAX_CHARACTERS:
            raise ValueError(f"{self.prompt_field}: together they have more than {MAX_CHARACTERS} characters")
        check_results(messages)
        return self

    @property
    def max_tokens_requested(self) -> int | None:
        """Maximum number of completion tokens that the client requested; None if it set no limit."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_top_log_probs(self) -> int | None:
        """How many of the most likely tokens the response names at each position; None if it has none."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def callable_tools(self) -> list[Tool]:
        """The tools that the model is told of; none if it must not call any."""
        return [] if self.tools is None or self.tool_choice == "none" else self.tools

    @property
    def must_call(self) -> bool:
        """Whether the answer must be a call."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedToolChoice)

    @property
    def has_one_call(self) -> bool:
        """Whether the answer may have no more than one call."""
        return self.parallel_tool_calls is False or isinstance(self.tool_choice, NamedToolChoice)
