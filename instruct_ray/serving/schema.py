"""The supported part of OpenAI's chat API: request and response bodies.

A request with a field or value that is not supported is rejected with its name; nothing is silently ignored.
"""

import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from instruct_ray.data.rendering.contract import Message
from instruct_ray.inference.engine import SamplingParams

MAX_MESSAGES = 256
MAX_CHARACTERS = 1_000_000
MAX_STOP_STRINGS = 4


class TextPart(BaseModel):
    """A text part of a message; some clients send a list of parts instead of a string."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Field(max_length=MAX_CHARACTERS)] | list[TextPart]
    name: str | None = None

    def to_message(self) -> Message:
        """Convert to the form that the renderer takes."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class StreamOptions(BaseModel):
    """Options of a streamed response."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False


class ChatRequest(BaseModel):
    """Body of POST /v1/chat/completions."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    stop: Annotated[str, Field(min_length=1)] | list[Annotated[str, Field(min_length=1)]] | None = None
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    # Clients send these fields with their defaults; no other value is supported.
    n: Literal[1] = 1
    logprobs: Literal[False] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None

    @model_validator(mode="after")
    def _check_limits(self) -> "ChatRequest":
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; send one of them")
        if isinstance(self.stop, list) and len(self.stop) > MAX_STOP_STRINGS:
            raise ValueError(f"stop takes at most {MAX_STOP_STRINGS} strings")
        return self

    @property
    def max_tokens_requested(self) -> int | None:
        """Maximum number of completion tokens that the client requested; None if it set no limit."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stop_strings(self) -> list[str]:
        """Strings that end the completion."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def sampling_params(self, limit: int) -> SamplingParams:
        """Build the sampling parameters, with at most `limit` new tokens."""
        max_new_tokens = min(self.max_tokens_requested or limit, limit)
        return SamplingParams(max_new_tokens, self.temperature, self.top_p, self.seed)


class ModelInfo(BaseModel):
    """The registered version that a replica serves."""

    name: str
    alias: str
    version: str
    contract_digest: str
    max_context: int

    @property
    def fingerprint(self) -> str:
        """The `system_fingerprint` of responses: identifies the version and its contract."""
        return f"{self.name}-{self.version}-{self.contract_digest[:12]}"

    @property
    def served_names(self) -> tuple[str, str]:
        """Model names that clients can use."""
        return self.name, f"{self.name}@{self.alias}"

    def to_openai_model(self, name: str) -> dict[str, Any]:
        """Build the entry of a served name in /v1/models."""
        return {"id": name, "object": "model", "created": 0, "owned_by": "instruct_ray", "version": self.version}


def build_completion(
    request: ChatRequest, info: ModelInfo, text: str, finish_reason: str, usage: dict[str, int]
) -> dict[str, Any]:
    """Build the body of a response that is not streamed."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}
    return {**_build_header(request, info, "chat.completion"), "choices": [choice], "usage": usage}


class ChunkBuilder:
    """Builds the chunks of one streamed response; all of them have the same id and time."""

    def __init__(self, request: ChatRequest, info: ModelInfo) -> None:
        self._header = _build_header(request, info, "chat.completion.chunk")

    def delta(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        """Build a chunk with new content, or the one with the finish reason."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return {**self._header, "choices": [choice]}

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        """Build the last chunk, with the token counts."""
        return {**self._header, "choices": [], "usage": usage}


def build_error(
    message: str, type: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Build the body of an error response."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def _build_header(request: ChatRequest, info: ModelInfo, object_type: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": object_type,
        "created": int(time.time()),
        "model": request.model,
        "system_fingerprint": info.fingerprint,
    }
