"""The part of OpenAI's chat API that the endpoint speaks; anything else is refused by name, never ignored."""

import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from instruct_ray.data.rendering.contract import Message
from instruct_ray.inference.engine import SamplingParams

MAX_MESSAGES = 256
MAX_CHARACTERS = 1_000_000


class TextPart(BaseModel):
    """Content in parts, as some clients send it; text only."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn of the conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Field(max_length=MAX_CHARACTERS)] | list[TextPart]
    name: str | None = None

    def as_message(self) -> Message:
        """The turn as the contract renders it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

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
    # Known to every client; only their neutral values are supported.
    n: Literal[1] = 1
    logprobs: Literal[False] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None

    @model_validator(mode="after")
    def _limits_agree(self) -> "ChatRequest":
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; send one of them")
        if isinstance(self.stop, list) and len(self.stop) > 4:
            raise ValueError("stop takes at most 4 strings")
        return self

    @property
    def num_requested(self) -> int | None:
        """Most tokens the client wants, or None."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stop_strings(self) -> list[str]:
        """Strings that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def sampling(self, limit: int) -> SamplingParams:
        """How the engine chooses tokens, with `limit` as the most of them."""
        return SamplingParams(min(self.num_requested or limit, limit), self.temperature, self.top_p, self.seed)


class ModelInfo(BaseModel):
    """What a replica serves."""

    name: str
    alias: str
    version: str
    contract_digest: str
    max_context: int

    @property
    def fingerprint(self) -> str:
        """Ties an answer to the version and contract that made it."""
        return f"{self.name}-{self.version}-{self.contract_digest[:12]}"

    @property
    def ids(self) -> tuple[str, str]:
        """The model names that clients may use."""
        return self.name, f"{self.name}@{self.alias}"

    def card(self, model_id: str) -> dict[str, Any]:
        """An entry of /v1/models."""
        return {"id": model_id, "object": "model", "created": 0, "owned_by": "instruct_ray", "version": self.version}


def completion_body(
    request: ChatRequest, info: ModelInfo, text: str, reason: str, usage: dict[str, int]
) -> dict[str, Any]:
    """The whole answer."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
    return {**_head(request, info, "chat.completion"), "choices": [choice], "usage": usage}


class ChunkMaker:
    """Makes the events of one streamed answer, which share id and time."""

    def __init__(self, request: ChatRequest, info: ModelInfo) -> None:
        self._head = _head(request, info, "chat.completion.chunk")

    def delta(self, delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        """A piece of the answer, or its end."""
        return {**self._head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]}

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        """The closing event with the token counts."""
        return {**self._head, "choices": [], "usage": usage}


def error_body(
    message: str, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _head(request: ChatRequest, info: ModelInfo, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": request.model,
        "system_fingerprint": info.fingerprint,
    }
