"""The body of a request of OpenAI's responses API, as far as it is supported; answered like a chat, without memory."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, model_validator

from instruct_ray.data.sources.tool_definitions import MAX_TOOLS
from instruct_ray.serving.chat_request import MAX_CHARACTERS, MAX_MESSAGES, ChatRequest
from instruct_ray.serving.request_fields import JsonSchema, RequestObject, SchemaName
from instruct_ray.serving.responses_items import Item, ResponsesTool, ResponsesToolChoice, Text, to_chat_messages
from instruct_ray.serving.tool_fields import Tool, ToolChoice, check_choice, check_results

# Fields that are not supported, each with the values besides null that ask for nothing. Nothing is stored, whatever
# `store` says, and responses say so.
UNUSED_REQUEST_FIELDS: dict[str, tuple[object, ...]] = {
    "background": (False,),
    "conversation": (),
    "include": ([],),
    "max_tool_calls": (),
    "metadata": ({},),
    "moderation": (),
    "previous_response_id": (),
    "prompt": (),
    "prompt_cache_key": (),
    "prompt_cache_retention": (),
    "reasoning": ({},),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (True, False),
    "stream_options": ({}, {"include_obfuscation": False}),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}
UNUSED_TEXT_FIELDS: dict[str, tuple[object, ...]] = {"verbosity": ("medium",)}


class TextFormat(RequestObject):
    """What the answer must be."""

    model_config = ConfigDict(populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: SchemaName | None = None
    json_schema: JsonSchema | None = Field(default=None, alias="schema")
    description: str | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> "TextFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("schema belongs to the type json_schema, and is required there")
        return self

    def to_chat(self) -> dict[str, Any]:
        """The same as `response_format` of a chat."""
        if self.type != "json_schema":
            return {"type": self.type}
        return {"type": self.type, "json_schema": {"name": self.name or "answer", "schema": self.json_schema}}


class TextOptions(RequestObject):
    """Options of the answer's text."""

    unused_fields = UNUSED_TEXT_FIELDS

    format: TextFormat = TextFormat()


class ResponsesChat(ChatRequest):
    """The chat that a request of the responses API asks for; errors name the fields of that API."""

    prompt_field = "input"
    format_field = "text.format"


class ResponsesRequest(RequestObject):
    """Body of POST /v1/responses."""

    model_config = ConfigDict(strict=True)

    unused_fields = UNUSED_REQUEST_FIELDS

    model: str
    input: Text | Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: Text | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    text: TextOptions = TextOptions()
    tools: list[ResponsesTool] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | ResponsesToolChoice = "auto"
    parallel_tool_calls: bool = True
    stream: bool = False
    user: str | None = None

    @model_validator(mode="after")
    def _check_messages(self) -> "ResponsesRequest":
        messages = [] if isinstance(self.input, str) else to_chat_messages(self.input)
        if len(messages) + (self.instructions is not None) > MAX_MESSAGES:
            raise ValueError(f"input and instructions have more than {MAX_MESSAGES} messages")
        texts = [self.instructions or "", self.input if isinstance(self.input, str) else ""]
        if sum(map(len, [*texts, *(message["content"] for message in messages)])) > MAX_CHARACTERS:
            raise ValueError(f"input and instructions have more than {MAX_CHARACTERS} characters")
        if any(len(message.get("tool_calls", ())) > MAX_TOOLS for message in messages):
            raise ValueError(f"input: more than {MAX_TOOLS} calls follow each other")
        check_results(messages)
        if self._chat_choice in ("none", "auto") and not self.tools:
            return self
        # The rest is checked as in a chat.
        tools = [Tool.model_validate(tool.to_chat()) for tool in self.tools]
        check_choice(tools, TypeAdapter(ToolChoice).validate_python(self._chat_choice), None)
        return self

    def to_chat(self) -> ResponsesChat:
        """The chat that is answered. Instructions come first, as a system message."""
        messages: list[dict[str, Any]] = []
        if self.instructions is not None:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            messages.append({"role": "user", "content": self.input})
        else:
            messages += to_chat_messages(self.input)
        tool_fields = {
            "tools": [tool.to_chat() for tool in self.tools],
            "tool_choice": self._chat_choice,
            "parallel_tool_calls": self.parallel_tool_calls,
        }
        return ResponsesChat.model_validate(
            {
                "model": self.model,
                "messages": messages,
                "max_completion_tokens": self.max_output_tokens,
                "temperature": self.temperature,
                "top_p": self.top_p,
                "response_format": self.text.format.to_chat(),
                "stream": self.stream,
                **(tool_fields if self.tools else {}),
            }
        )

    @property
    def _chat_choice(self) -> str | dict[str, Any]:
        """The same as `tool_choice` of a chat."""
        if isinstance(self.tool_choice, str):
            return self.tool_choice
        return {"type": "function", "function": {"name": self.tool_choice.name}}
