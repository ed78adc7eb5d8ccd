"""What a replica sends to the gateway: which version answers, and the answer in chunks, or why there is none."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from instruct_ray.inference.engine import FinishReason

# Finish reasons of a complete answer; any other one is an error.
COMPLETE_REASONS = ("stop", "length", "tool_calls")


class VersionInfo(BaseModel):
    """A version that answers."""

    name: str
    version: str
    """Its number, or `base` for the base model."""
    contract_digest: str
    data_digest: str | None
    """Digest of the packs it was trained on."""
    max_context: int
    layout: str
    """How its contract lays out instruction and input in a message."""

    @property
    def fingerprint(self) -> str:
        """The `system_fingerprint` of responses: identifies the version, its contract and its training data."""
        data = "" if self.data_digest is None else f"-{self.data_digest[:12]}"
        return f"{self.name}-{self.version}-{self.contract_digest[:12]}{data}"


class ModelInfo(VersionInfo):
    """What a replica serves: the version under the alias that it follows, and further models."""

    alias: str
    not_followed: str | None = None
    """Why it is not the version under the alias, if it is not."""
    further_models: dict[str, str] = {}
    """Further model names that clients can use, each with its version."""
    further_layouts: dict[str, str] = {}
    """Their versions, each with its layout."""
    not_served: dict[str, str] = {}
    """Model names that are configured and can't be used, each with the reason."""

    @property
    def served_models(self) -> dict[str, str]:
        """Model names that clients can use, each with its version."""
        followed = (self.name, f"{self.name}@{self.alias}", f"{self.name}/{self.version}")
        return dict.fromkeys(followed, self.version) | self.further_models

    def to_openai_model(self, name: str) -> dict[str, Any]:
        """Build the entry of a served name in /v1/models."""
        version = self.served_models[name]
        layout = self.layout if version == self.version else self.further_layouts[version]
        entry = {"id": name, "object": "model", "created": 0, "owned_by": "instruct_ray"}
        return {**entry, "version": version, "layout": layout}


@dataclass(frozen=True)
class RequestError:
    """The error response to a request that can't be answered."""

    status: int
    message: str
    param: str
    code: str


@dataclass(frozen=True)
class AnswerStart:
    """The first message of an answer."""

    info: VersionInfo
    num_prompt_tokens: int
    num_choices: int


@dataclass(frozen=True)
class TextToken:
    """A token with its text and log-probability."""

    text: str
    log_prob: float
    top: tuple[tuple[str, float], ...] = ()
    """The most likely tokens at its position, best first."""


@dataclass(frozen=True)
class ToolCall:
    """A call of a function."""

    id: str
    name: str
    arguments: str
    """A JSON object."""


@dataclass(frozen=True)
class ReplicaChunk:
    """A part of a choice's text; its last chunk also has the finish reason, and the calls if the choice has any."""

    text: str = ""
    finish_reason: FinishReason | Literal["tool_calls"] | None = None
    num_tokens: int = 0
    """Tokens that were generated since the choice's last chunk."""
    choice: int = 0
    """Index of the choice."""
    tokens: tuple[TextToken, ...] = ()
    """The tokens since the last chunk, if the request asks for log-probabilities."""
    tool_calls: tuple[ToolCall, ...] = ()
    num_cached_tokens: int = 0
    """In the last chunk of a prompt's first choice: how many tokens of the prompt were in the engine's cache."""


@dataclass(frozen=True)
class TokenCounts:
    """The tokens of a response. A prompt counts once, however many choices it has."""

    num_prompt: int
    num_cached: int
    """Of the prompt: those that the engine had computed for earlier requests."""
    num_completion: int
